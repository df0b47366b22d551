"""Parity tests need the reference; their own tox environment installs it."""
