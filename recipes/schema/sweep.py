"""A sweep: one recipe at every combination of some values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from recipes.schema.common import PathStr, Positive, Rate, Section, need

_AXES = need("dotted keys of the recipe, each with a list of values")
Bytes = Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(MiB|GiB)$", **need("text such as 4GiB"))]


class SweepFile(Section):
    """What a sweep file says; the recipe itself stays in its own file."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    """Version of the format."""
    kind: Literal["sweep"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Label; names the sweep's folder."""
    description: str | None = None
    """For readers."""
    recipe: PathStr
    """Recipe file, relative to this one."""
    overrides: Annotated[dict[str, Any] | None, Field(alias="set", **need("dotted keys of the recipe and values"))] = (
        None
    )
    """Dotted keys of the recipe and their values, for every row."""
    axes: Annotated[dict[str, Any], Field(min_length=1, **_AXES)]
    """Dotted keys of the recipe, each with the values it takes; every combination is a cell."""
    repeats: Positive = 1
    """Process runs of each cell."""
    order: Literal["listed", "interleaved", "random"] = "interleaved"
    """``interleaved``: every cell once, then every cell again; ``random``: shuffled with ``seed``; ``listed``: all
    repeats of a cell together, which a slow drift of the machine would show as an effect."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the random order."""
    timeout_s: Rate | None = None
    """A row is ended after this many seconds; null: as the recipe says."""
    memory_cap: Bytes | None = None
    """Memory that a row's process may take; null: no cap. On Ascend cap ``runtime.max_device_memory`` instead."""
