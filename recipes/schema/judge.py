"""The kind judge."""

from __future__ import annotations

from typing import Literal

from recipes.schema.common import PathStr, Positive, Recipe


class JudgeRecipe(Recipe):
    """Counts how many videos of one moving shape show the shape, colour and motion that their captions name."""

    kind: Literal["judge"]
    videos: PathStr
    """Output folder of make-clips or generate, which hold ``video_caption.csv``."""
    csv: PathStr | None = None
    """CSV file with the columns video and caption; null: ``video_caption.csv`` in ``videos``."""
    training_steps: Positive | None = None
    """Training steps of the model that made them, for the report; null: read off the records, where they say."""
