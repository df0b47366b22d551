"""Loss scale for fp16 gradients: fixed, or as large as does not overflow. Plain Python, no MindSpore here."""

from __future__ import annotations

import math
from typing import Self

from core.errors import WeightsError

_LARGEST = 2.0**127  # the scale is multiplied in fp32


class LossScale:
    """What the loss is multiplied by before gradients are taken; the gradients' factor has 1 / value.

    Dynamic: an overflow divides the value by ``factor`` (not below 1), ``window`` steps without one in a row multiply
    it, as MindSpore's DynamicLossScaler and torch's GradScaler do. Build with ``static`` or ``dynamic``.

    Attributes:
        value: the scale of the next step.
        skipped: overflows so far, that is, steps that changed no parameter.
    """

    def __init__(self, value: float, factor: float, window: int):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"loss scale {value} is not usable; need a positive number")
        if factor < 1 or window < 1:
            raise ValueError(f"loss scale: got factor {factor}, window {window}; need factor >= 1 and window >= 1")
        self.value, self.factor, self.window = float(value), float(factor), int(window)
        self.skipped = 0
        self.clean = 0

    @classmethod
    def static(cls, value: float) -> Self:
        """Always ``value``."""
        return cls(value, 1.0, 1)

    @classmethod
    def dynamic(cls, initial: float, factor: float = 2.0, window: int = 2000) -> Self:
        """Starts at ``initial`` and follows the overflows."""
        if not (initial >= 1 and factor > 1):
            raise ValueError(f"loss scale: got initial {initial}, factor {factor}; need initial >= 1 and factor > 1")
        return cls(initial, factor, window)

    @property
    def exhausted(self) -> bool:
        """Whether an overflow now could not be cured by a lower scale: the gradients themselves are not finite."""
        return self.factor == 1 or self.value <= 1

    def update(self, overflowed: bool) -> None:
        """Takes in whether this step's gradients had an element that is not finite; once a step."""
        if overflowed:
            self.skipped += 1
            self.clean = 0
            if self.factor > 1:
                self.value = max(1.0, self.value / self.factor)
            return
        self.clean += 1
        if self.clean == self.window:
            self.clean = 0
            self.value = min(self.value * self.factor, _LARGEST)

    def state(self) -> dict[str, float | int]:
        """Everything that changes, for JSON (Python's floats survive it bit by bit)."""
        return {"value": self.value, "skipped": self.skipped, "clean": self.clean}

    def load_state(self, state: dict[str, float | int]) -> None:
        """Takes over what ``state()`` returned.

        Raises:
            WeightsError: other names.
        """
        names = ("value", "skipped", "clean")
        problems = [f"{name} is missing" for name in names if name not in state]
        problems += [f"{name} is unknown" for name in state if name not in names]
        if problems:
            raise WeightsError("state of LossScale", problems)
        self.value, self.skipped, self.clean = float(state["value"]), int(state["skipped"]), int(state["clean"])
