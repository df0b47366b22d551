"""Tests that take minutes; ``tox -e slow``."""
