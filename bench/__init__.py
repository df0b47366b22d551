"""Runs recipes in child processes and writes records. Importing this package does not import mindspore."""
