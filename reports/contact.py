"""A contact sheet: one row of evenly spaced frames for each video, its caption above the row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from core.files import atomic_path
from reports.collect import Notice
from reports.media import Picture, read_frames

COLUMNS = 6
_CELL = 190
_GAP = 6
_MARGIN = 14
_FONT_SIZE = 15
_MAX_LINES = 3
# A film contact sheet is dark; dark grey stands on a white page and on a black one.
_BACKGROUND, _TEXT, _FRAME = (32, 36, 42), (226, 230, 235), (84, 92, 102)


def contact_sheet(
    pictures: Sequence[Picture], out: Path, *, columns: int = COLUMNS
) -> tuple[Path | None, list[Notice]]:
    """Writes the PNG ``out``, a row per picture that can be decoded; returns it (None without a row) and notices."""
    strips: list[tuple[str, list[Image.Image]]] = []
    notices: list[Notice] = []
    for picture in pictures:
        try:
            frames = [_thumbnail(frame) for frame in read_frames(picture.path, columns)]
        except Exception as error:  # PyAV and PIL raise many kinds; a broken video is a row, not the end of a report
            reason = " ".join(str(error).split()) or type(error).__name__
            notices.append(Notice(path=str(picture.path), message=f"can't be decoded: {reason}"))
            continue
        strips.append((picture.caption, frames))
    if not strips:
        return None, notices
    sheet = _draw(strips)
    with atomic_path(out) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return out, notices


def _thumbnail(frame: Image.Image) -> Image.Image:
    scale = min(_CELL / frame.width, _CELL / frame.height)
    size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
    # A 16-pixel toy video stays crisp when enlarged; a real one is smoothed when reduced.
    return frame.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _draw(strips: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    font = _font()
    width = 2 * _MARGIN + max(max(sum(f.width + _GAP for f in frames) for _, frames in strips) - _GAP, 3 * _CELL)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    blocks = [(wrap(caption, width - 2 * _MARGIN, measure, font), frames) for caption, frames in strips]
    line = _FONT_SIZE + 6
    height = _MARGIN + sum(len(lines) * line + max(f.height for f in frames) + _MARGIN for lines, frames in blocks)
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for lines, frames in blocks:
        for text in lines:
            draw.text((_MARGIN, y), text, fill=_TEXT, font=font)
            y += line
        x = _MARGIN
        for frame in frames:
            sheet.paste(frame, (x, y))
            draw.rectangle((x - 1, y - 1, x + frame.width, y + frame.height), outline=_FRAME)
            x += frame.width + _GAP
        y += max(frame.height for frame in frames) + _MARGIN
    return sheet


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """matplotlib's DejaVu Sans (Latin, Greek, Cyrillic and more); PIL's own font where it can't be loaded."""
    try:
        return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), _FONT_SIZE)
    except OSError:
        return ImageFont.load_default(_FONT_SIZE)


def wrap(text: str, width: int, draw: ImageDraw.ImageDraw, font: object) -> list[str]:
    """``text`` in at most three lines no wider than ``width`` pixels; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < _MAX_LINES:
        end = _fitting(rest, width, draw, font)
        if end < len(rest):
            space = rest.rfind(" ", 0, end + 1)
            end = space if space > 0 else end
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        last = lines[-1]
        while last and draw.textlength(last + "…", font=font) > width:  # pyright: ignore[reportArgumentType]
            last = last[:-1]
        lines[-1] = last + "…"
    return lines or [""]


def _fitting(text: str, width: int, draw: ImageDraw.ImageDraw, font: object) -> int:
    low, high = 1, min(len(text), 2000)
    while low < high:
        middle = (low + high + 1) // 2
        fits = draw.textlength(text[:middle], font=font) <= width  # pyright: ignore[reportArgumentType]
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
