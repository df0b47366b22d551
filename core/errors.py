"""Errors that a user can cause; a program shows their text in one line and exits with 2."""

from __future__ import annotations

import errno

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class UserError(ValueError):
    """What was got, what is needed and what to do, in one line."""


class WeightsError(UserError):
    """A checkpoint that can't be used. ``problems`` lists every finding, the text shows them all."""

    def __init__(self, source: str, problems: list[str]):
        self.source = source
        self.problems = problems
        shown = "; ".join(problems[:50])
        more = f"; and {len(problems) - 50} more" if len(problems) > 50 else ""
        super().__init__(f"{source}: {len(problems)} problem{'s' if len(problems) != 1 else ''}: {shown}{more}")


def unwritable(error: BaseException) -> str | None:
    """One line for an OSError that says that a place can't be written (full, read-only, not allowed), else None."""
    if not isinstance(error, OSError) or error.errno not in _UNWRITABLE:
        return None
    where = error.filename2 or error.filename
    place = f"{where}: " if where else ""
    return f"{place}can't be written ({error.strerror}); free some space or choose another folder"
