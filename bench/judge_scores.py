"""What a caption of a moving shape asks for, and how sure a share of right answers is."""

from __future__ import annotations

import math
import re
from typing import Final

from core.data.shapes import COLORS, MOTIONS, SHAPES
from core.errors import UserError

ATTRIBUTES: Final = ("shape", "color", "motion")
_WORDS: Final = {
    "shape": re.compile(rf"\b({'|'.join(SHAPES)})\b"),
    # "on a white background" is not the object's colour.
    "color": re.compile(rf"\b({'|'.join(COLORS)})\b(?!\s+background)"),
    "motion": re.compile(rf"\bmoving\s+(?:to\s+the\s+)?({'|'.join(MOTIONS)})\b"),
}


def asked_for(caption: str) -> dict[str, str]:
    """The attributes that a caption names: ``{"shape": "circle", "color": "red", "motion": "left"}`` or fewer.

    Raises:
        UserError: it names none, or two of a kind.
    """
    found = {name: sorted(set(pattern.findall(caption.lower()))) for name, pattern in _WORDS.items()}
    if twice := [name for name, words in found.items() if len(words) > 1]:
        raise UserError(f"the caption names {' and '.join(found[twice[0]])}, need one {twice[0]}: the judge sees one")
    if not any(found.values()):
        raise UserError(
            "the caption names no shape, colour or motion that the judge knows; caption it as make-clips does"
        )
    return {name: words[0] for name, words in found.items() if words}


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share, 95 % by default (Wilson 1927); (0, 1) for no trial."""
    if total == 0:
        return 0.0, 1.0
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    # Exactly 0 and 1 at the ends, where the sums round.
    return (0.0 if right == 0 else centre - half), (1.0 if right == total else centre + half)
