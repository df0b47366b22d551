"""Predicted memory, work and time of a recipe (docs/design/016), and what checks the predictions."""
