"""What can be wrong with a recipe, where, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from core.errors import UserError

_OR_NULL = " or null"


@dataclass(frozen=True, order=True)
class Problem:
    """One finding. ``line`` and ``column`` count from 1; both are 0 where there is no text (``--set``, a dict)."""

    file: str
    line: int
    column: int
    key: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        key = f" {self.key}:" if self.key else ""
        suggestion = f"; {self.suggestion}" if self.suggestion else ""
        return f"{where}:{key} {self.message}{suggestion}"


class RecipeErrors(UserError):  # noqa: N818 - it holds all of them
    """A recipe that can't be used. ``problems`` lists every finding once, by position; the text shows one a line."""

    def __init__(self, problems: Iterable[Problem]):
        found = set(problems)
        # In a pipeline one value may be read by two kinds, of which only one may have null there.
        same = {replace(problem, message=problem.message + _OR_NULL) for problem in found}
        self.problems = sorted(found - same)
        super().__init__("\n".join(str(problem) for problem in self.problems))
