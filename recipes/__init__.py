"""Recipes: one YAML file states one experiment completely. Importing this package does not import mindspore."""
