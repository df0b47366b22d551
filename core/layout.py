"""Where the parts of a model lie on disk, in both published layouts. No MindSpore here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError

# The original's README puts the text encoder and tokenizer beside the model, under this name.
_T5_FOLDER = "t5-v1_1-xxl"


@dataclass(frozen=True, kw_only=True)
class ModelFolders:
    """One folder a component; None where it was not found (a task that needs it says so)."""

    transformer: Path | None
    vae: Path | None
    text_encoder: Path | None
    tokenizer: Path | None
    scheduler: Path | None

    def need(self, name: str) -> Path:
        """The folder of component ``name``.

        Raises:
            UserError: it was not found.
        """
        folder = getattr(self, name)
        if folder is None:
            raise UserError(f"model: no {name} folder found; set model.{name}, or model.path to a diffusers folder")
        return folder


def _child(folder: Path, name: str, markers: tuple[str, ...]) -> Path | None:
    if not folder.is_dir():
        return None
    for child in sorted(folder.iterdir()):
        if child.name.lower() == name and any((child / m).is_file() for m in markers):
            return child
    return None


_TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json")


def find_folders(path: str | Path | None, **overrides: str | Path | None) -> ModelFolders:
    """Finds the components under ``path``; keyword arguments name a component's folder directly.

    Layouts: one diffusers folder (``transformer vae text_encoder tokenizer scheduler``), or
    ``models/CogVideoX-1.5-5b/{transformer,vae}`` (capitals allowed) with ``models/t5-v1_1-xxl``, where ``path`` is
    either the inner folder or ``models`` with a single CogVideoX folder in it.
    """
    found: dict[str, Path | None] = dict.fromkeys(("transformer", "vae", "text_encoder", "tokenizer", "scheduler"))
    if path is not None:
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"model.path: folder {root} not found; need a diffusers folder or models/CogVideoX-*")
        if _child(root, "transformer", ("config.json",)) is None and (root / _T5_FOLDER).is_dir():
            inner = [c for c in sorted(root.iterdir()) if _child(c, "transformer", ("config.json",))]
            if len(inner) != 1:
                raise UserError(
                    f"model.path: got {len(inner)} models in {root}, need one; name it, e.g. {root}/CogVideoX-1.5-5b"
                )
            root = inner[0]
        t5 = root.parent / _T5_FOLDER
        found["transformer"] = _child(root, "transformer", ("config.json",))
        found["vae"] = _child(root, "vae", ("config.json",))
        found["text_encoder"] = _child(root, "text_encoder", ("config.json",)) or _t5(t5, ("config.json",))
        found["tokenizer"] = _child(root, "tokenizer", _TOKENIZER_FILES) or _t5(t5, _TOKENIZER_FILES)
        found["scheduler"] = _child(root, "scheduler", ("scheduler_config.json",))
    for name, folder in overrides.items():
        if folder is not None:
            if not Path(folder).is_dir():
                raise UserError(f"model.{name}: folder {folder} not found")
            found[name] = Path(folder)
    return ModelFolders(**found)


def _t5(folder: Path, markers: tuple[str, ...]) -> Path | None:
    """The T5 folder itself, or a sub-folder of it that holds the files (a copy of the published repository)."""
    if any((folder / m).is_file() for m in markers):
        return folder
    name = "tokenizer" if markers is _TOKENIZER_FILES else "text_encoder"
    return _child(folder, name, markers)
