"""The recipe format: one pydantic class a kind (frozen, strict, unknown keys are errors)."""

from __future__ import annotations

from recipes.schema.common import Model, Output, Parallel, Recipe, Runtime, Section, Tiling
from recipes.schema.generate import DecodeLatentsRecipe, GenerateRecipe
from recipes.schema.judge import JudgeRecipe
from recipes.schema.paired import PairedRecipe
from recipes.schema.pipeline import (
    DecodeLatentsStage,
    EncodeTextStage,
    EncodeVideoStage,
    GenerateStage,
    JudgeStage,
    MakeClipsStage,
    MakeModelStage,
    PipelineHead,
    PipelineRecipe,
    Stage,
    TrainStage,
    TrainVAEStage,
)
from recipes.schema.prepare import EncodeTextRecipe, EncodeVideoRecipe, MakeClipsRecipe, MakeModelRecipe
from recipes.schema.train import TrainRecipe
from recipes.schema.vae import TrainVAERecipe

STAGE_KINDS: dict[str, type[Recipe]] = {
    "make-clips": MakeClipsStage,
    "make-model": MakeModelStage,
    "encode-text": EncodeTextStage,
    "encode-video": EncodeVideoStage,
    "train": TrainStage,
    "train-vae": TrainVAEStage,
    "generate": GenerateStage,
    "decode-latents": DecodeLatentsStage,
    "judge": JudgeStage,
}
KINDS: dict[str, type[Recipe]] = {
    "make-clips": MakeClipsRecipe,
    "make-model": MakeModelRecipe,
    "encode-text": EncodeTextRecipe,
    "encode-video": EncodeVideoRecipe,
    "train": TrainRecipe,
    "train-vae": TrainVAERecipe,
    "generate": GenerateRecipe,
    "decode-latents": DecodeLatentsRecipe,
    "judge": JudgeRecipe,
    "paired": PairedRecipe,
    "pipeline": PipelineRecipe,
}

__all__ = [
    "KINDS",
    "STAGE_KINDS",
    "DecodeLatentsRecipe",
    "EncodeTextRecipe",
    "EncodeVideoRecipe",
    "GenerateRecipe",
    "JudgeRecipe",
    "MakeClipsRecipe",
    "MakeModelRecipe",
    "Model",
    "Output",
    "PairedRecipe",
    "Parallel",
    "PipelineHead",
    "PipelineRecipe",
    "Recipe",
    "Runtime",
    "Section",
    "Stage",
    "Tiling",
    "TrainRecipe",
    "TrainVAERecipe",
]
