"""The data set's CSV file: one row a clip, in the original's layout (``video,caption`` with relative paths)."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from core.errors import UserError

RowError = Callable[[int, str, str], None]
"""Called with (row, item, one-line message) for a row that can't be used."""

_FIELD_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Row:
    """One clip: ``row`` counts data rows from 1, ``line`` is the line of the file on which the row starts."""

    row: int
    line: int
    video: str
    caption: str
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The rows of a CSV file in its order; ``path`` is the file."""

    path: Path
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def where(self, row: Row) -> str:
        """``file:line (row n)`` for messages."""
        return f"{self.path}:{row.line} (row {row.row})"


class _RowError(Exception):
    """A row that can't be used; the text is the reason without file and row."""


def read_manifest(
    path: str | os.PathLike,
    *,
    video_column: str = "video",
    caption_column: str | None = "caption",
    video_folder: str | os.PathLike | None = None,
    on_row_error: RowError | None = None,
) -> Manifest:
    """Reads a CSV file (UTF-8, with or without BOM; quoted commas, quotes and newlines) into rows in file order.

    ``caption_column=None`` does not ask for captions. With ``video_folder`` a path that leaves the folder through a
    symbolic link is refused too. A row is unusable if it has another number of fields than the header, no video, no
    caption, a path outside the folder, or the cache file name of an earlier row; with ``on_row_error`` each such row
    is reported there and left out, otherwise UserError names the first. UserError too for a file that is missing,
    not UTF-8, not CSV, has no rows, or lacks a column.
    """
    path = Path(path)
    records = _records(path)
    if not records:
        raise UserError(f"{path}: empty file; needs a header line such as 'video,caption' and one row a clip")
    header = [name.strip() for name in records[0][1]]
    _check_header(path, header, [video_column] + ([caption_column] if caption_column else []))
    root = Path(video_folder).resolve() if video_folder is not None else None
    rows: list[Row] = []
    problems: list[str] = []
    first_row: dict[str, int] = {}
    for number, (line, fields) in enumerate(records[1:], start=1):
        item = ""
        try:
            if len(fields) != len(header):
                raise _RowError(
                    f"{len(fields)} fields where the header has {len(header)}; "
                    'put a caption that contains a comma in double quotes ("...")'
                )
            values = dict(zip(header, fields, strict=True))
            item = values[video_column].strip()
            row = _row(number, line, values, columns=(video_column, caption_column), root=root)
            _check_unique(row, first_row)
            rows.append(row)
        except _RowError as problem:
            if on_row_error is not None:
                on_row_error(number, item, f"{path}:{line} (row {number}): {problem}")
            problems.append(f"{path}:{line} (row {number}): {problem}")
    if problems and on_row_error is None:
        more = f" (and {len(problems) - 1} more rows with problems)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    if not rows and not problems:
        raise UserError(f"{path}: a header but no rows; add one row a clip: {video_column},caption")
    return Manifest(path=path, rows=tuple(rows))


def resolve_video(row: Row, video_folder: str | os.PathLike) -> Path:
    """Path of a row's clip: ``<folder>/<video>``, or without the path's first part if that is the folder's own name.

    The original's README writes ``video_folder/part01/a.mp4`` in the CSV and passes either the folder above or
    ``video_folder`` itself; both work. UserError if there is no such file or it lies outside the folder.
    """
    root = Path(video_folder)
    candidates = [root / row.video]
    parts = PurePosixPath(row.video).parts
    if len(parts) > 1 and parts[0] == root.resolve().name:
        candidates.append(root.joinpath(*parts[1:]))
    for candidate in candidates:
        if candidate.is_file():
            if not candidate.resolve().is_relative_to(root.resolve()):
                raise UserError(f"{row.video}: leaves {root} through a symbolic link; point video_folder at its target")
            return candidate
    tried = " or ".join(str(candidate) for candidate in candidates)
    raise UserError(f"{row.video}: no such file ({tried}); correct data.video_folder or the CSV row")


def _records(path: Path) -> list[tuple[int, list[str]]]:
    """(first line, fields) of every record that is not blank."""
    previous_limit = csv.field_size_limit(_FIELD_LIMIT)
    records, line = [], 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for fields in reader:
                if len(fields) > 1 or any(part.strip() for part in fields):
                    records.append((line + 1, fields))
                line = reader.line_num
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; give the path of a CSV file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (after line {line}); save the CSV file as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}:{line + 1}: not valid CSV: {error}; check the double quotes of this row") from error
    finally:
        csv.field_size_limit(previous_limit)
    return records


def _check_header(path: Path, header: list[str], needed: list[str]) -> None:
    missing = [name for name in needed if name not in header]
    if missing:
        raise UserError(
            f"{path}:1: no column {', '.join(map(repr, missing))}; the file has {', '.join(map(repr, header))}; "
            "rename it or set data.video_column / data.caption_column"
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise UserError(f"{path}:1: column {repeated[0]!r} appears twice; each column needs a name of its own")


def _row(number: int, line: int, values: dict[str, str], *, columns: tuple[str, str | None], root: Path | None) -> Row:
    video_column, caption_column = columns
    video = _checked_video(values[video_column].strip(), root)
    caption = values[caption_column] if caption_column else ""
    if caption_column and not caption.strip():
        raise _RowError(f"empty caption for {video}; write one or remove the row")
    extra = {name: value for name, value in values.items() if name not in columns}
    return Row(row=number, line=line, video=video, caption=caption, extra=extra)


def _check_unique(row: Row, first_row: dict[str, int]) -> None:
    # Two clips that differ only in their suffix would overwrite each other's cache file.
    key = str(PurePosixPath(row.video).with_suffix(".npz"))
    if key in first_row:
        raise _RowError(f"{row.video} would be cached as {key}, as row {first_row[key]} is; remove or rename one")
    first_row[key] = row.row


def _checked_video(text: str, root: Path | None) -> str:
    """The path, normalised to forward slashes without ``.`` parts."""
    if not text:
        raise _RowError("empty video path; give a path relative to the video folder")
    if any(ord(letter) < ord(" ") for letter in text):
        raise _RowError(f"control character in the video path {text!r}; give a plain relative path")
    path = PurePosixPath(text.replace("\\", "/"))
    if not path.name:
        raise _RowError(f"video path {text!r} names no file; give a path relative to the video folder")
    if path.is_absolute() or (len(path.parts[0]) > 1 and path.parts[0][1] == ":") or text.startswith("~"):
        raise _RowError(f"absolute video path {text!r}; give a path relative to the video folder")
    if ".." in path.parts:
        raise _RowError(f"video path {text!r} leaves the video folder; remove '..'")
    if root is not None and not (root / path).resolve().is_relative_to(root):
        raise _RowError(f"video path {text!r} leaves {root} by a symbolic link; point video_folder at its target")
    return str(path)
