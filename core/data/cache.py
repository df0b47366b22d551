"""The original's cache files: text embeddings and VAE latents, one ``.npz`` a clip.

    <text folder>/<video path>.npz    text_emb float32 [L, D], mask uint8 [L]; prompt lists add tokens int [L]
    <text folder>/empty_text.npz      the same for the empty caption
    <video folder>/<video path>.npz   latent_mean, latent_std float32 [t, C, h, w] (not scaled), fps, ori_size [2]

Letters: L tokens, D features, t latent frames, C channels, h and w latent height and width. Ours also hold the key
``cogbench``, JSON bytes that say what made the file (model digest, size, transform); readers of the original ignore
it, and files without it are accepted. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from core.errors import UserError
from core.files import atomic_path

EMPTY_TEXT: Final = "empty_text.npz"
_IDENTITY = "cogbench"
_BROKEN = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, NotImplementedError)
_PROMPT_WORDS, _PROMPT_BYTES = 10, 120


class OutputError(UserError):
    """The place of the results can't be written (full, read-only): no later file would fare better."""


@dataclass(frozen=True, kw_only=True)
class TextCache:
    """``text_emb`` float32 ``[L, D]``, ``mask`` uint8 ``[L]``, ``tokens`` int32 ``[L]`` in prompt-list files."""

    text_emb: np.ndarray
    mask: np.ndarray
    tokens: np.ndarray | None = None
    identity: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class VideoCache:
    """``latent_mean``, ``latent_std`` float32 ``[t, C, h, w]``, ``fps`` of the encoded frames, source size (h, w)."""

    latent_mean: np.ndarray
    latent_std: np.ndarray
    fps: float
    ori_size: tuple[int, int]
    identity: dict[str, Any] | None = None


def cache_path(folder: str | os.PathLike, video: str) -> Path:
    """Where a clip's cache is written: ``<folder>/<video path with .npz>``."""
    return Path(folder) / PurePosixPath(video).with_suffix(".npz")


def find_cache(folder: str | os.PathLike, video: str) -> Path:
    """Where a clip's cache is read: ``cache_path``, or that without the first part of the video's path.

    The original's scripts write ``<folder>/video_folder/part01/a.npz``, its README shows ``<folder>/part01/a.npz``.
    UserError if neither is there.
    """
    path = cache_path(folder, video)
    parts = PurePosixPath(video).parts
    shorter = cache_path(folder, str(PurePosixPath(*parts[1:]))) if len(parts) > 1 else path
    for candidate in (path, shorter):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: no cache for {video}; run the encode-text or encode-video recipe that fills {folder}")


def prompt_name(index: int, prompt: str) -> str:
    """File name of prompt ``index`` in prompt-list mode: ``NNN-first-ten-words.npz``, at most 120 bytes of prompt."""
    kept = (letter for letter in prompt if letter.isspace() or (letter.isprintable() and letter != "/"))
    words = "".join(kept).split()
    text = "-".join(words[:_PROMPT_WORDS]).encode("utf-8")[:_PROMPT_BYTES].decode("utf-8", "ignore")
    return f"{index:03d}-{text}.npz"


def write_text_cache(path: str | os.PathLike, cache: TextCache) -> None:
    """Writes a text cache atomically; the arrays must have the shapes and types of ``TextCache``."""
    _check_text(Path(path), cache.text_emb, cache.mask, cache.tokens)
    arrays = {"text_emb": cache.text_emb, "mask": cache.mask}
    if cache.tokens is not None:
        arrays["tokens"] = cache.tokens
    _write(path, arrays, cache.identity)


def write_video_cache(path: str | os.PathLike, cache: VideoCache) -> None:
    """Writes a latent cache atomically; the arrays must have the shapes and types of ``VideoCache``."""
    _check_video(Path(path), cache.latent_mean, cache.latent_std)
    arrays = {
        "latent_mean": cache.latent_mean,
        "latent_std": cache.latent_std,
        "fps": np.array(cache.fps, np.float64),
        "ori_size": np.array(cache.ori_size, np.int64),
    }
    _write(path, arrays, cache.identity)


def read_text_cache(path: str | os.PathLike) -> TextCache:
    """Reads and checks a text cache; UserError, one line, for wrong keys, shapes, types, NaN or a damaged file."""
    path = Path(path)
    arrays = _read(path, ("text_emb", "mask"), optional=("tokens",))
    _check_text(path, arrays["text_emb"], arrays["mask"], arrays.get("tokens"))
    return TextCache(
        text_emb=arrays["text_emb"], mask=arrays["mask"], tokens=arrays.get("tokens"), identity=_identity(path, arrays)
    )


def read_video_cache(path: str | os.PathLike) -> VideoCache:
    """Reads and checks a latent cache; UserError, one line, for wrong keys, shapes, types, NaN or a damaged file."""
    path = Path(path)
    arrays = _read(path, ("latent_mean", "latent_std", "fps", "ori_size"))
    _check_video(path, arrays["latent_mean"], arrays["latent_std"])
    fps, size = arrays["fps"], arrays["ori_size"]
    _need(path, "fps", fps, fps.size == 1 and fps.dtype.kind in "fiu", "one number")
    _need(path, "ori_size", size, size.shape == (2,) and size.dtype.kind in "fiu", "two numbers (height, width)")
    return VideoCache(
        latent_mean=arrays["latent_mean"],
        latent_std=arrays["latent_std"],
        fps=float(fps.reshape(())),
        ori_size=(int(size[0]), int(size[1])),
        identity=_identity(path, arrays),
    )


@dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """What a cache file says before its large arrays are read; ``ori_size`` (height, width) only in latent files."""

    shapes: dict[str, tuple[tuple[int, ...], np.dtype]]
    identity: dict[str, Any] | None
    ori_size: tuple[int, int] | None


def read_header(path: str | os.PathLike) -> CacheHeader:
    """Shapes and types of every array and the small entries, so that thousands of files are checked in seconds.

    UserError if the file is missing, damaged or cut short (a zip's directory is at its end).
    """
    path, shapes, small = Path(path), {}, {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                key = name.removesuffix(".npy")
                with archive.open(name) as member:
                    first = np.lib.format.read_magic(member) == (1, 0)
                    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(member)
                    shapes[key] = (tuple(shape), dtype)
                if key in (_IDENTITY, "ori_size"):
                    with archive.open(name) as member:
                        small[key] = np.lib.format.read_array(member, allow_pickle=False)
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    size = small.get("ori_size")
    ori_size = None
    if size is not None and size.shape == (2,) and size.dtype.kind in "fiu":
        ori_size = (int(size[0]), int(size[1]))
    return CacheHeader(shapes=shapes, identity=_identity(path, small), ori_size=ori_size)


def read_identity(path: str | os.PathLike) -> dict[str, Any] | None:
    """What made the file, or None for files of the original."""
    path = Path(path)
    return _identity(path, _read(path, (), optional=(_IDENTITY,)))


def identity_conflict(found: dict[str, Any] | None, wanted: dict[str, Any]) -> str | None:
    """How a file's identity differs from ``wanted`` ("height 480 instead of 768"), or None; no identity never does."""
    if found is None:
        return None
    # Through JSON, so that tuples equal the lists they come back as.
    wanted = json.loads(json.dumps(wanted))
    different = [name for name in sorted(wanted.keys() | found.keys()) if found.get(name) != wanted.get(name)]
    if not different:
        return None
    return ", ".join(f"{name} {_short(found.get(name))} instead of {_short(wanted.get(name))}" for name in different)


def _short(value: object) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 16 else text[:12] + "..."


def _write(path: str | os.PathLike, arrays: dict[str, np.ndarray], identity: dict[str, Any] | None) -> None:
    if identity is not None:
        text = json.dumps(identity, sort_keys=True, ensure_ascii=True)
        arrays = {**arrays, _IDENTITY: np.frombuffer(text.encode("ascii"), np.uint8)}
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes allow_pickle for one of the arrays
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path}: can't be written ({reason}); free some space or set output.folder") from error


def _read(path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise UserError(f"{path}: a single array, not an .npz file; needs {', '.join(needed)}")
            keys = set(archive.files)
            missing = [name for name in needed if name not in keys]
            if missing:
                raise UserError(
                    f"{path}: no {', '.join(missing)} (it holds {', '.join(sorted(keys)) or 'nothing'}); "
                    f"needs {', '.join(needed)}: encode it again with overwrite: true"
                )
            return {name: archive[name] for name in (*needed, *optional, _IDENTITY) if name in keys}
    except UserError:
        raise
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file; run the encode recipe that writes it")
    text = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())[:160]
    if "allow_pickle" in text or "pickled" in text:
        text = "it holds pickled Python objects, which are never loaded"
    return UserError(f"{path}: not a readable cache file ({text}); delete it and encode it again")


def _identity(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any] | None:
    stored = arrays.get(_IDENTITY)
    if stored is None:
        return None
    try:
        value = json.loads(stored.astype(np.uint8).tobytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: its entry {_IDENTITY!r} is not JSON; encode it again with overwrite: true") from error
    return value if isinstance(value, dict) else None


def _check_text(path: Path, text_emb: np.ndarray, mask: np.ndarray, tokens: np.ndarray | None) -> None:
    _need(path, "text_emb", text_emb, text_emb.ndim == 2 and text_emb.dtype == np.float32, "float32 [L, D]")
    length = text_emb.shape[0]
    _need(path, "mask", mask, mask.shape == (length,) and mask.dtype == np.uint8, f"uint8 [{length}]")
    if tokens is not None:
        good = tokens.shape == (length,) and tokens.dtype.kind in "iu"
        _need(path, "tokens", tokens, good, f"int [{length}]")
    _finite(path, "text_emb", text_emb)


def _check_video(path: Path, mean: np.ndarray, std: np.ndarray) -> None:
    good = mean.ndim == 4 and mean.dtype == np.float32 and 0 not in mean.shape
    _need(path, "latent_mean", mean, good, "float32 [t, C, h, w]")
    _need(path, "latent_std", std, std.shape == mean.shape and std.dtype == np.float32, f"float32 {list(mean.shape)}")
    _finite(path, "latent_mean", mean)
    _finite(path, "latent_std", std)
    if (std < 0).any():
        raise UserError(f"{path}: latent_std is negative; it must be a standard deviation: encode it again")


def _need(path: Path, name: str, array: np.ndarray, good: bool, wanted: str) -> None:
    if not good:
        raise UserError(
            f"{path}: {name} is {array.dtype} {list(array.shape)}; needs {wanted}: encode it again with overwrite: true"
        )


def _finite(path: Path, name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {name} contains NaN or infinity; encode it again with another dtype (fp32 or bf16)")
