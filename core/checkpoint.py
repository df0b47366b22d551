"""Reading and writing folders in diffusers layout: ``config.json`` and safetensors files. No MindSpore here.

A folder holds one ``*.safetensors`` file or several with an index (``*.safetensors.index.json``). Tensors are read
one at a time, in pieces, each through a memory map of its own: pages of a map that stays open count as the process's
memory until it is closed, and a whole checkpoint would be resident beside the model. bf16 arrives as
``ml_dtypes.bfloat16``.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import ml_dtypes  # registers bfloat16 with NumPy, which safetensors needs to hand out bf16 tensors
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from core.errors import UserError, WeightsError
from core.files import atomic_path, write_text
from core.params import ParamTable

STORED_TYPES: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
PIECE_BYTES = 2**25  # read at a time, as fp32
_FLOATS = {"F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
_FLOATS["BF16"] = np.dtype(ml_dtypes.bfloat16)
_POPULATE_READ = 22  # madvise(2): all pages at once, as they are in the file; Python has no name for it
_REFERENCE_VERSION = "0.42.1"  # the diffusers release whose files ours are compared with


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        UserError: missing, not readable, not JSON, not a mapping.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: file not found; need a folder in diffusers layout that holds it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}); download it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: got a JSON {type(values).__name__}, need a mapping of config fields")
    return values


def component_folder(directory: str | Path, name: str, marker: str = "config.json") -> Path:
    """The folder of component ``name``: ``directory`` itself if it holds ``marker``, else its sub-folder of that name.

    ``Transformer`` and ``VAE`` with capitals, as the original's README writes them, are found too.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: folder not found; need a {name} folder in diffusers layout")
    if (directory / marker).is_file():
        return directory
    for child in sorted(directory.iterdir()):
        if child.name.lower() == name and (child / marker).is_file():
            return child
    raise UserError(f"{directory}: neither {marker} nor {name}/{marker} is there; need a folder in diffusers layout")


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _data_begins(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begin: 8 bytes of its length, the header in JSON, data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


class Checkpoint:
    """The tensors of one folder, opened lazily; use as a context manager. ``bytes_read``: of tensors, as stored.

    Raises:
        UserError: no safetensors file, several without an index, a damaged index.
        WeightsError: missing or damaged shards, all of them named.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.bytes_read = Path(folder), 0
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._identities: dict[str, tuple[int, ...]] = {}
        self._begins: dict[str, int] = {}  # of a tensor in its file, in bytes
        self.locations: dict[str, str] = {}
        declared = self._read_index()
        problems = []
        for file in sorted(set(declared.values())) if declared else [self._single_file()]:
            try:
                self._open(file)
            except FileNotFoundError:
                problems.append(f"shard {file} is missing; download it again")
            except (SafetensorError, OSError) as error:
                problems.append(f"{file} is truncated or damaged ({error}); download it again")
        lost = [
            f"{n} is not in {f}, where the index puts it" for n, f in declared.items() if self.locations.get(n) != f
        ]
        if problems or lost:
            self.close()
            raise WeightsError(str(self.folder), problems or lost)

    def _read_index(self) -> dict[str, str]:
        indices = sorted(self.folder.glob("*.safetensors.index.json"))
        if not indices:
            return {}
        if len(indices) > 1:
            raise UserError(f"{self.folder}: got {len(indices)} index files, need one; keep the one you want to load")
        mapping = read_json(indices[0]).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise UserError(f"{indices[0]}: no weight_map in it; download it again")
        bad = [f for f in mapping.values() if not isinstance(f, str) or Path(f).name != f]
        if bad:
            raise UserError(f"{indices[0]}: got shard name {bad[0]!r}, need plain file names in the same folder")
        return mapping

    def _single_file(self) -> str:
        files = [f.name for f in sorted(self.folder.glob("*.safetensors")) if not f.name.startswith(".")]
        if not files:
            other = sorted(f.name for f in self.folder.glob("*.bin"))
            hint = f" (found {other[0]}: convert it to safetensors first)" if other else ""
            raise UserError(f"{self.folder}: no *.safetensors file{hint}")
        if len(files) > 1:
            raise UserError(
                f"{self.folder}: got {len(files)} safetensors files without an index ({', '.join(files[:4])}); "
                "need one file, or shards with a *.safetensors.index.json"
            )
        return files[0]

    def _open(self, file: str) -> None:
        handle = self._stack.enter_context(safe_open(self.folder / file, framework="np"))
        self._files[file], self._identities[file] = handle, _identity(self.folder / file)
        header, data = _data_begins(self.folder / file)
        names = handle.keys()
        self._begins.update({name: data + header[name]["data_offsets"][0] for name in names})
        self.locations.update(dict.fromkeys(names, file))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmaps the files."""
        self._stack.close()

    def _slice(self, name: str) -> Any:
        return self._files[self.locations[name]].get_slice(name)

    def _path(self, name: str) -> Path:
        """The file that holds ``name``.

        Raises:
            UserError: it is not the one that was checked.
        """
        file = self.locations[name]
        try:
            same = _identity(self.folder / file) == self._identities[file]
        except FileNotFoundError:
            same = False
        if not same:
            raise UserError(f"{self.folder / file}: changed or removed while {name} was read; leave it and start again")
        return self.folder / file

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of tensor ``name`` without reading it."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Stored type of tensor ``name`` as safetensors writes it: F32, F16, BF16, ..."""
        return self._slice(name).get_dtype()

    def tensor(self, name: str) -> np.ndarray:
        """Reads one tensor in its stored type."""
        with safe_open(self._path(name), framework="np") as file:
            array = file.get_tensor(name)
        self.bytes_read += array.nbytes
        return array

    def mapped(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` along dimension 0 of a tensor of floats that has one, in its stored type.

        They are pages of the file, not a copy; the map goes with the last array that shows them.
        """
        shape, kind = self.shape(name), _FLOATS[self.dtype(name)]
        row = math.prod(shape[1:])
        begin, size = self._begins[name] + start * row * kind.itemsize, (stop - start) * row * kind.itemsize
        self.bytes_read += size
        if not size:
            return np.empty((stop - start, *shape[1:]), kind)
        before = begin % mmap.ALLOCATIONGRANULARITY
        with self._path(name).open("rb") as file:
            # Private and writable, which nobody does: MindSpore takes no array that can't be written.
            pages = mmap.mmap(
                file.fileno(), before + size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=begin - before
            )
        with suppress(OSError):  # an older kernel: each page costs a fault then
            pages.madvise(_POPULATE_READ)
        return np.frombuffer(pages, kind, (stop - start) * row, before).reshape(stop - start, *shape[1:])

    def rows(self, name: str, start: int, stop: int, dtype: Any) -> np.ndarray:
        """Rows ``start`` to ``stop`` along dimension 0 of a tensor that has one, as numpy type ``dtype``.

        Read and cast piece by piece: beside the result ``PIECE_BYTES`` of the file are mapped, or one row if it is
        longer.
        """
        shape = self.shape(name)
        out = np.empty((stop - start, *shape[1:]), dtype)
        each = max(1, PIECE_BYTES // max(1, 4 * math.prod(shape[1:])))
        for first in range(start, stop, each):
            last = min(stop, first + each)
            piece = self.mapped(name, first, last)
            with np.errstate(over="ignore"):  # what does not fit into fp16 becomes infinite there, as on every device
                out[first - start : last - start] = piece
            del piece
        return out

    def whole(self, name: str, dtype: Any) -> np.ndarray:
        """``rows`` of all rows; a number without dimensions, too."""
        shape = self.shape(name)
        return self.rows(name, 0, shape[0], dtype) if shape else self.tensor(name).astype(dtype)

    def check(self, table: ParamTable, aliases: Mapping[str, str]) -> dict[str, str]:
        """Where to read every parameter of ``table``: ``name -> tensor name``; strict both ways.

        Raises:
            WeightsError: every missing, unexpected, mis-shaped or non-float tensor.
        """
        by_target = {target: alias for alias, target in aliases.items() if alias in self.locations}
        sources = {n: (n if n in self.locations else by_target.get(n, n)) for n in table}
        problems = [f"missing {n} {list(table[n].shape)}" for n, s in sources.items() if s not in self.locations]
        problems += [f"unexpected {n}" for n in self.locations if n not in table and n not in aliases]
        for name, source in sources.items():
            if source not in self.locations:
                continue
            if self.shape(source) != table[name].shape:
                problems.append(f"{name}: got shape {list(self.shape(source))}, need {list(table[name].shape)}")
            elif self.dtype(source) not in _FLOATS:
                problems.append(f"{name}: got type {self.dtype(source)}, need one of {', '.join(_FLOATS)}")
        if problems:
            raise WeightsError(str(self.folder), problems)
        return sources


def shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Groups names in order so that no group exceeds ``limit`` bytes (one larger tensor stands alone)."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def write_checkpoint(
    folder: str | Path,
    stem: str,
    table: ParamTable,
    read: Any,
    *,
    dtype: str = "fp32",
    max_shard_bytes: int = 5_000_000_000,
    skip: Iterable[str] = (),
) -> list[Path]:
    """Writes ``<stem>.safetensors``, or shards and their index when larger than ``max_shard_bytes``.

    ``read(name)`` returns an array; one shard is in memory at a time. Older weight files of the same stem are removed
    after the new ones are complete. Returns the paths written.
    """
    folder, stored = Path(folder), STORED_TYPES[dtype]
    sizes = {n: math.prod(s.shape) * np.dtype(stored).itemsize for n, s in table.items() if n not in set(skip)}
    groups = shards(sizes, max_shard_bytes)
    count = len(groups)
    names = (
        [f"{stem}.safetensors"]
        if count == 1
        else [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    for file, group in zip(names, groups, strict=True):
        with atomic_path(folder / file) as temporary:
            save_file({n: np.asarray(read(n), stored, order="C") for n in group}, temporary, {"format": "pt"})
    written = [folder / n for n in names]
    if count > 1:
        mapping = {n: file for file, group in zip(names, groups, strict=True) for n in group}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": mapping}
        write_text(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2) + "\n")
        written.append(folder / f"{stem}.safetensors.index.json")
    for old in folder.glob(f"{stem}*.safetensors*"):
        if old not in written:
            old.unlink()
    return written


def write_config(path: Path, class_name: str, fields: Mapping[str, Any]) -> None:
    """Writes a diffusers config file: the class, the version its format follows, the fields."""
    head = {"_class_name": class_name, "_diffusers_version": _REFERENCE_VERSION}
    write_text(path, json.dumps({**head, **fields}, indent=2) + "\n")
