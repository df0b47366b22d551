"""The nested parts of a record (see ``bench.record``). SI units; a missing value is null, never 0."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["ok", "oom", "failed", "timeout", "unsteady", "skipped"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(gt=0, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Part(BaseModel):
    """Base of every part: unknown keys are errors, values can't change."""

    # "constants" keeps NaN visible to `record.dump`, which refuses it; the default would write it as null.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Stage(Part):
    """One timed section of the run. ``name`` holds the enclosing sections, ``generate/denoise``."""

    name: str
    seconds: Seconds
    items: int | None = None
    frames: int | None = None
    process_peak_bytes: Bytes | None = None


class Step(Part):
    """One step. ``loss`` is null when the step has none or it isn't finite; ``loss_hex`` keeps every bit."""

    index: int
    seconds: Seconds
    loss: Finite | None = None
    loss_hex: str | None = None
    tags: tuple[str, ...] = ()
    samples: int | None = None
    frames: int | None = None
    tokens: int | None = None
    extra: dict[str, Any] = Field(default_factory=dict)


class Summary(Part):
    """Statistics of the counted steps (those without an excluded tag). Rates are medians over these steps."""

    steps_counted: int
    steps_excluded: int
    step_seconds_median: Positive | None = None
    step_seconds_min: Positive | None = None
    step_seconds_max: Positive | None = None
    samples_per_second: Positive | None = None
    frames_per_second: Positive | None = None
    tokens_per_second: Positive | None = None
    samples_per_second_per_card: Positive | None = None
    frames_per_second_per_card: Positive | None = None
    tokens_per_second_per_card: Positive | None = None
    first_third_seconds: Positive | None = None
    last_third_seconds: Positive | None = None
    drift: Finite | None = None
    steady: bool | None = None


class RankMemory(Part):
    """Memory of one rank."""

    rank: int
    device_allocated_peak_bytes: Bytes | None = None
    device_reserved_peak_bytes: Bytes | None = None
    process_peak_bytes: Bytes | None = None


class PhaseMemory(Part):
    """Peaks while one part of a run went on (``load``, ``first step``, ``steady``, ``checkpoint``, ``decode``, ...)."""

    name: str
    rank: int = 0
    device_allocated_peak_bytes: Bytes | None = None
    device_reserved_peak_bytes: Bytes | None = None
    process_peak_bytes: Bytes | None = None


class CardMemory(Part):
    """Memory in use on one card as the driver sees it, whoever uses it: before the run, and the most during it."""

    card: str
    idle_bytes: Annotated[int, Field(ge=0)]
    peak_bytes: Annotated[int, Field(ge=0)]


class DeviceLevel(Part):
    """Readings of the driver's tool. ``net_peak_bytes``: the largest peak above its card's idle reading, null if none.

    Sampled, so a short peak can be missed; the counters of the framework in ``Memory`` can't miss one.
    """

    source: str
    samples: int
    cards: tuple[CardMemory, ...] = ()
    net_peak_bytes: Bytes | None = None
    processes_before: tuple[str, ...] = ()
    reason: str | None = None


class Load(Part):
    """Processor time around the steady steps, in cores: what others used, what the hypervisor took.

    ``disturbed``: others used more than the cores that this run could not use anyway.
    """

    window_seconds: Seconds
    own_cores: Finite
    foreign_cores: Finite
    steal_cores: Finite
    logical_cores: int
    usable_cores: int
    disturbed: bool


class Memory(Part):
    """Peaks in bytes: each number is the largest over the ranks (rank ``max_rank``), never a sum.

    ``process_peak_bytes`` is the kernel's high-water mark of resident memory when the process ended (wait4), or
    the next where that is unusable; ``process_hwm_bytes`` is the mark the process itself read at its end (VmHWM).
    """

    device_allocated_peak_bytes: Bytes | None = None
    device_reserved_peak_bytes: Bytes | None = None
    process_peak_bytes: Bytes | None = None
    process_hwm_bytes: Bytes | None = None
    per_rank: tuple[RankMemory, ...] = ()
    phases: tuple[PhaseMemory, ...] = ()
    max_rank: int | None = None


class RankEnd(Part):
    """How one rank of several went: its own status and step times. ``reason`` says why a status is not ok.

    ``steps`` are its counted steps; ``step_seconds_median`` is null without any.
    """

    rank: int
    host: str | None = None
    pid: int | None = None
    status: Status
    reason: str | None = None
    exit_code: int | None = None
    signal: str | None = None
    steps: int = 0
    step_seconds_median: Positive | None = None


class Code(Part):
    """What ran: git commit, whether files differ from it, and a digest of the source files themselves."""

    commit: str | None
    dirty: bool | None
    digest: str


class Artifact(Part):
    """A file the run wrote; ``path`` is relative to the run folder where it lies inside, else absolute."""

    kind: str
    path: str
    sha256: str
    meta: dict[str, Any] = Field(default_factory=dict)


class Failure(Part):
    """One input the run could not process; ``row`` as in the input file."""

    row: int | None = None
    item: str
    message: str


class Metric(Part):
    """A named number; null only with a reason (checked by ``Record``)."""

    value: Finite | None
    unit: str
    reason: str | None = None


class Repeat(Part):
    """This process run is number ``index`` (from 1) of ``of``."""

    index: int = Field(ge=1)
    of: int = Field(ge=1)
