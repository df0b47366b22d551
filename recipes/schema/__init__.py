"""The recipe format: one pydantic class a kind (frozen, strict, unknown keys are errors)."""

from __future__ import annotations

from recipes.schema.common import Model, Output, Parallel, Recipe, Runtime, Section, Tiling
from recipes.schema.generate import DecodeLatentsRecipe, GenerateRecipe
from recipes.schema.pipeline import (
    DecodeLatentsStage,
    EncodeTextStage,
    EncodeVideoStage,
    GenerateStage,
    MakeClipsStage,
    MakeModelStage,
    PipelineHead,
    PipelineRecipe,
    Stage,
    TrainStage,
)
from recipes.schema.prepare import EncodeTextRecipe, EncodeVideoRecipe, MakeClipsRecipe, MakeModelRecipe
from recipes.schema.train import TrainRecipe

STAGE_KINDS: dict[str, type[Recipe]] = {
    "make-clips": MakeClipsStage,
    "make-model": MakeModelStage,
    "encode-text": EncodeTextStage,
    "encode-video": EncodeVideoStage,
    "train": TrainStage,
    "generate": GenerateStage,
    "decode-latents": DecodeLatentsStage,
}
KINDS: dict[str, type[Recipe]] = {
    "make-clips": MakeClipsRecipe,
    "make-model": MakeModelRecipe,
    "encode-text": EncodeTextRecipe,
    "encode-video": EncodeVideoRecipe,
    "train": TrainRecipe,
    "generate": GenerateRecipe,
    "decode-latents": DecodeLatentsRecipe,
    "pipeline": PipelineRecipe,
}

__all__ = [
    "KINDS",
    "STAGE_KINDS",
    "DecodeLatentsRecipe",
    "EncodeTextRecipe",
    "EncodeVideoRecipe",
    "GenerateRecipe",
    "MakeClipsRecipe",
    "MakeModelRecipe",
    "Model",
    "Output",
    "Parallel",
    "PipelineHead",
    "PipelineRecipe",
    "Recipe",
    "Runtime",
    "Section",
    "Stage",
    "Tiling",
    "TrainRecipe",
]
