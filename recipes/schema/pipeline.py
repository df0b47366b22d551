"""The kind pipeline: other kinds in order.

In a file a pipeline may also have ``common`` (defaults for every stage) and stages that are files (``recipe:``,
``set:``). ``recipes.pipeline`` resolves both, so the validated form below has complete stages only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from recipes.schema.common import AsTuple, Recipe, Section, need
from recipes.schema.generate import DecodeLatentsRecipe, GenerateRecipe
from recipes.schema.judge import JudgeRecipe
from recipes.schema.prepare import EncodeTextRecipe, EncodeVideoRecipe, MakeClipsRecipe, MakeModelRecipe
from recipes.schema.train import TrainRecipe
from recipes.schema.vae import TrainVAERecipe

StageName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*$",
        max_length=100,
        **need("letters, digits, '_' and '-', with a letter first (it is referred to as @name and stages.name)"),
    ),
]


class Stage(Section):
    """What every stage has beside its kind's keys; ``@name/rest`` in a later stage is a path in its output folder."""

    only_if_used: bool = False
    """Skip the stage if no stage that runs refers to it."""


class MakeClipsStage(Stage, MakeClipsRecipe):
    """A make-clips recipe in a pipeline."""

    name: StageName


class MakeModelStage(Stage, MakeModelRecipe):
    """A make-model recipe in a pipeline."""

    name: StageName


class EncodeTextStage(Stage, EncodeTextRecipe):
    """An encode-text recipe in a pipeline."""

    name: StageName


class EncodeVideoStage(Stage, EncodeVideoRecipe):
    """An encode-video recipe in a pipeline."""

    name: StageName


class TrainStage(Stage, TrainRecipe):
    """A train recipe in a pipeline."""

    name: StageName


class TrainVAEStage(Stage, TrainVAERecipe):
    """A train-vae recipe in a pipeline."""

    name: StageName


class GenerateStage(Stage, GenerateRecipe):
    """A generate recipe in a pipeline."""

    name: StageName


class DecodeLatentsStage(Stage, DecodeLatentsRecipe):
    """A decode-latents recipe in a pipeline."""

    name: StageName


class JudgeStage(Stage, JudgeRecipe):
    """A judge recipe in a pipeline."""

    name: StageName


AnyStage = Annotated[
    MakeClipsStage
    | MakeModelStage
    | EncodeTextStage
    | EncodeVideoStage
    | TrainStage
    | TrainVAEStage
    | GenerateStage
    | DecodeLatentsStage
    | JudgeStage,
    Field(discriminator="kind"),
]


class PipelineHead(Recipe):
    """A pipeline without its stages: what can be checked before they are resolved."""

    kind: Literal["pipeline"]
    report: bool = False
    """Write a page about the run at its end."""


class PipelineRecipe(PipelineHead):
    """Runs stages in order; ``seed`` and ``runtime`` are defaults of the stages (but ``repeats`` and ``timeout_s``)."""

    stages: Annotated[tuple[AnyStage, ...], AsTuple, Field(min_length=1, **need("a list of stages"))]

    @field_validator("stages")
    @classmethod
    def _names_differ(cls, stages: tuple[AnyStage, ...]) -> tuple[AnyStage, ...]:
        names = [stage.name for stage in stages]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"got the stage name {repeated[0]!r} twice, need different names")
        return stages
