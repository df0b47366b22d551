"""Data on disk: CSV files, clips, caches, and training samples. Nothing here imports MindSpore."""
