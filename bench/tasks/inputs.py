"""Reading what a generate recipe may bring along: prompts from files, arrays from npy and npz."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError


def read_prompts(recipe: Any) -> list[str]:
    """The recipe's prompts: ``prompts``, then those of ``prompts_file`` (a line each, or a csv column)."""
    prompts: list[str] = list(recipe.prompts or ())
    if recipe.prompts_file:
        prompts += prompts_of_file(Path(recipe.prompts_file))
    return prompts


def prompts_of_file(path: Path) -> list[str]:
    """Prompts of a text file (non-empty lines) or a csv file with a ``caption`` or ``prompt`` column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts_file {path}: cannot be read ({error}); need a UTF-8 text or csv file") from None
    if path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        column = next((c for c in ("caption", "prompt") if rows and c in rows[0]), None)
        if column is None:
            raise UserError(f"prompts_file {path}: need a header with a column 'caption' or 'prompt' and a row")
        prompts = [(row[column] or "").strip() for row in rows]
        empty = [i + 2 for i, prompt in enumerate(prompts) if not prompt]
        if empty:
            raise UserError(f"prompts_file {path}: row {empty[0]}: empty {column}; need a text in every row")
        return prompts
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"prompts_file {path}: no prompt in it; need one a line")
    return prompts


def read_arrays(path: str | Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """A .npy file as ``{keys[0]: array}``, or those of ``keys`` that a .npz holds (at least one); never unpickles."""
    path = Path(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {keys[0]: loaded}
        with loaded:
            found = {key: loaded[key] for key in keys if key in loaded.files}
            present = ", ".join(loaded.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a readable .npy or .npz file ({reason}); need arrays saved by NumPy") from None
    if not found:
        raise UserError(f"{path}: got entries {present or 'none'}, need one of {', '.join(keys)}")
    return found


def batched(path: str | Path, keys: tuple[str, ...], ndim: int) -> np.ndarray:
    """A float32 array of ``ndim`` axes read from ``path``; a missing batch axis is added."""
    key, array = next(iter(read_arrays(path, keys).items()))
    if array.ndim == ndim - 1:
        array = array[None]
    if array.ndim != ndim or not np.issubdtype(array.dtype, np.floating) or not array.size:
        raise UserError(
            f"{path}: {key} has shape {list(array.shape)} and type {array.dtype}, need {ndim} axes of floats"
        )
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {key} holds NaN or infinity; need finite numbers")
    return array.astype(np.float32)


def slug(text: str, length: int = 40) -> str:
    """A file name's part made from a prompt: letters and digits, joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-") or "video"
