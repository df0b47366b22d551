"""Published checkpoints in and out: folders in diffusers layout to models and back, strict both ways."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import mindspore as ms
import numpy as np

from core import ops
from core.checkpoint import STORED_TYPES, Checkpoint, component_folder, read_json, write_checkpoint, write_config
from core.configs import SchedulerConfig, T5Config, TransformerConfig, VAEConfig
from core.errors import UserError
from core.files import write_text
from core.model import Model, Unread
from core.presets import PRESETS
from core.schedulers.base import Scheduler
from core.schedulers.ddim import CogVideoXDDIMScheduler
from core.schedulers.dpm import CogVideoXDPMScheduler
from core.text.parameters import ALIASES as T5_ALIASES
from core.text.t5 import T5EncoderModel
from core.transformer.model import CogVideoXTransformer3DModel
from core.vae.model import AutoencoderKLCogVideoX

SCHEDULERS: dict[str, type[Scheduler]] = {
    "CogVideoXDDIMScheduler": CogVideoXDDIMScheduler,
    "CogVideoXDPMScheduler": CogVideoXDPMScheduler,
}
Read = Callable[[str], np.ndarray]
_TYPES = {"fp32": ms.float32, "bf16": ms.bfloat16, "fp16": ms.float16}
_M = TypeVar("_M", bound=Model)
Resident = Literal["all", "encoder", "decoder", "none"]
SMALL_BYTES = 2**20  # of a parameter that is resident in any case: opening the file costs more than its memory
_DIFFUSERS_STEM, _TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"


def ms_type(dtype: str) -> ms.Type:
    """MindSpore's type for ``fp32``, ``bf16`` or ``fp16``."""
    if dtype not in _TYPES:
        raise UserError(f"dtype: got {dtype!r}, need one of {', '.join(_TYPES)}")
    return _TYPES[dtype]


def _numpy_type(model: Model) -> Any:
    """Of the type in which the model keeps its parameters."""
    return STORED_TYPES[next(name for name, kind in _TYPES.items() if kind == model.param_dtype)]


def load_into(model: _M, folder: str | Path, aliases: Mapping[str, str] | None = None) -> _M:
    """Fills ``model`` from the safetensors in ``folder``, one tensor at a time; the stored type is cast to the model's.

    Raises:
        WeightsError: every missing, unexpected, mis-shaped tensor, or damaged shard, in one error.
    """
    with Checkpoint(folder) as checkpoint:
        sources = checkpoint.check(model.table, aliases or {})
        for name, source in sources.items():
            model.adopt(name, checkpoint.whole(source, _numpy_type(model)))
        model.source_types = dict(Counter(checkpoint.dtype(source) for source in sources.values()))
    return model


class Stored:
    """A model's parameters where they lie on the disk, for a process that wants its rows of them alone.

    Raises:
        WeightsError: as ``load_into``.
    """

    def __init__(self, model: Model, folder: Path, aliases: Mapping[str, str] | None = None):
        self._checkpoint, self._type = Checkpoint(folder), _numpy_type(model)
        self._sources = self._checkpoint.check(model.table, aliases or {})
        model.source_types = dict(Counter(self._checkpoint.dtype(source) for source in self._sources.values()))

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors that were read, as they are stored."""
        return self._checkpoint.bytes_read

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of parameter ``name`` along its first dimension: fp32, of the values that the model's type holds."""
        return self._checkpoint.rows(self._sources[name], start, stop, self._type).astype(np.float32, copy=False)

    def shown(self, name: str) -> np.ndarray:
        """``whole`` for somebody who uses it at once: pages of the file, where its type is the model's fp32."""
        source = self._sources[name]
        if self._type == np.float32 and self._checkpoint.dtype(source) == "F32":
            return self._checkpoint.mapped(source, 0, self._checkpoint.shape(source)[0])
        return self.whole(name)

    def whole(self, name: str) -> np.ndarray:
        """The whole parameter, likewise."""
        return self.typed(name).astype(np.float32, copy=False)

    def typed(self, name: str) -> np.ndarray:
        """The whole parameter in the model's type."""
        return self._checkpoint.whole(self._sources[name], self._type)


class OnDisk:
    """Keeps parameters ``names`` of ``model`` on the disk: ``Model.block`` hands out fp32 tensors read for it alone.

    What is read, one tensor at a time, is in no pool and gone after its last use. It has no gradient.
    """

    def __init__(self, model: Model, stored: Stored, names: Iterable[str]):
        ops.return_large_memory()
        self.stored, self._names, self._computed = stored, frozenset(names), model.compute_dtype
        self._shapes = {name: model.table[name].shape for name in self._names}
        for name, parameter in model.parameters_dict().items():
            parameter.requires_grad = parameter.requires_grad and name not in self._names
        model.keep_in(self)

    def keeps(self, name: str) -> bool:
        """Whether ``name`` lies on the disk."""
        return name in self._names

    def lazy(self) -> bool:
        """Whole parameters exist only while something computes with them."""
        return True

    def part(self, name: str) -> Unread:
        """What is handed out until the parameter itself is asked for."""

        def read() -> ms.Tensor:
            return ms.Tensor.from_numpy(self.stored.shown(name)).astype(self._computed)

        return Unread(self._shapes[name], read)

    def gathering(self, names: Sequence[str], shorts: Sequence[str]) -> None:
        """Nothing is gathered from other processes."""

    def full(self, names: Sequence[str]) -> list[ms.Tensor]:
        """The parameters, read anew."""
        return [ms.Tensor.from_numpy(self.stored.whole(name)) for name in names]


def stored_transformer(directory: str | Path, dtype: str = "fp32") -> tuple[CogVideoXTransformer3DModel, Stored]:
    """A transformer whose parameters are not read, and where they lie (``core.parallel.zero.Zero`` of stage 3).

    What is not trained has to be assigned.
    """
    folder = component_folder(directory, "transformer")
    config = TransformerConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    model = CogVideoXTransformer3DModel(config, ms_type(dtype))
    return model, Stored(model, folder)


def load_transformer(directory: str | Path, dtype: str = "fp32") -> CogVideoXTransformer3DModel:
    """Loads ``config.json`` and weights of a transformer; ``dtype`` is the type in which they are kept.

    ``directory`` is the component's folder or the pipeline's folder that contains it; so for all loaders here.
    """
    folder = component_folder(directory, "transformer")
    config = TransformerConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    return load_into(CogVideoXTransformer3DModel(config, ms_type(dtype)), folder)


def load_vae(directory: str | Path, dtype: str = "fp32", *, resident: Resident = "all") -> AutoencoderKLCogVideoX:
    """Loads a VAE; see ``load_transformer``.

    ``resident``: which side's parameters stay in memory. Large ones of the other (``none``: of both) are read from the
    files whenever a chunk needs them and have no gradient; all names and shapes are checked here in any case.

    Raises:
        UserError: besides ``load_into``'s, later: a file changed since.
    """
    folder = component_folder(directory, "vae")
    config = VAEConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    model = AutoencoderKLCogVideoX(config, ms_type(dtype))
    if resident == "all":
        return load_into(model, folder)
    stored = Stored(model, folder)
    large = {n for n, spec in model.table.items() if spec.size * np.dtype(_numpy_type(model)).itemsize >= SMALL_BYTES}
    absent = {name for name in large if not name.startswith(f"{resident}.")}
    for name in model.table:
        if name not in absent:
            model.adopt(name, stored.typed(name))
    OnDisk(model, stored, absent)
    return model


def load_text_encoder(directory: str | Path, dtype: str = "fp32") -> T5EncoderModel:
    """Loads a T5 encoder; of ``config.json`` the fields in ``T5Config`` are used, transformers writes many others."""
    folder = component_folder(directory, "text_encoder")
    values = read_json(folder / "config.json")
    known = {k: v for k, v in values.items() if k in T5Config.__dataclass_fields__}
    config = T5Config.from_dict(known, str(folder / "config.json"))
    return load_into(T5EncoderModel(config, ms_type(dtype)), folder, T5_ALIASES)


def load_scheduler(directory: str | Path, sampler: str | None = None) -> Scheduler:
    """Builds the scheduler of ``scheduler_config.json``; ``sampler`` (``ddim`` or ``dpm``) overrides its class.

    Raises:
        UserError: an unknown class or field.
    """
    folder = component_folder(directory, "scheduler", "scheduler_config.json")
    path = folder / "scheduler_config.json"
    values = read_json(path)
    config = SchedulerConfig.from_dict(values, str(path))
    name = values.get("_class_name", "CogVideoXDDIMScheduler")
    if name not in SCHEDULERS:
        raise UserError(f"{path}: got _class_name {name!r}, need one of {', '.join(SCHEDULERS)}")
    return make_scheduler(config, sampler) if sampler else SCHEDULERS[name](config)


def make_scheduler(config: SchedulerConfig, sampler: str) -> Scheduler:
    """A scheduler by its short name, ``ddim`` or ``dpm``."""
    classes = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
    if sampler not in classes:
        raise UserError(f"sampler: got {sampler!r}, need one of {', '.join(classes)}")
    return classes[sampler](config)


def default_scheduler_config(transformer: TransformerConfig) -> SchedulerConfig:
    """Scheduler config for a checkpoint folder without one (the original's layout): the 2B's for sincos models."""
    return PRESETS["5b" if transformer.use_rotary_positional_embeddings else "2b"].scheduler


def parameter_array(model: Model, name: str) -> np.ndarray:
    """Float32 copy of one parameter."""
    storage = model.storage
    if isinstance(storage, OnDisk) and storage.keeps(name):
        return storage.full([name])[0].asnumpy()
    return model.parameters_dict()[name].astype(ms.float32).asnumpy().copy()  # updates write in place


def _save(
    model: Model, directory: str | Path, stem: str, dtype: str, max_shard_bytes: int, read: Read | None = None
) -> None:
    read = read or partial(parameter_array, model)
    write_checkpoint(directory, stem, model.table, read, dtype=dtype, max_shard_bytes=max_shard_bytes)


def save_transformer(
    model: CogVideoXTransformer3DModel,
    directory: str | Path,
    dtype: str = "fp32",
    max_shard_bytes: int = 5_000_000_000,
    read: Read | None = None,
) -> None:
    """Writes a folder that ``diffusers.CogVideoXTransformer3DModel.from_pretrained`` loads.

    ``read`` gives each parameter's fp32 array, in the table's order, where the model does not hold it whole.
    """
    _save(model, directory, _DIFFUSERS_STEM, dtype, max_shard_bytes, read)
    write_config(Path(directory) / "config.json", "CogVideoXTransformer3DModel", model.config.to_dict())


def save_vae(
    model: AutoencoderKLCogVideoX, directory: str | Path, dtype: str = "fp32", max_shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a folder that ``diffusers.AutoencoderKLCogVideoX.from_pretrained`` loads."""
    _save(model, directory, _DIFFUSERS_STEM, dtype, max_shard_bytes)
    write_config(Path(directory) / "config.json", "AutoencoderKLCogVideoX", model.config.to_dict())


def save_text_encoder(
    model: T5EncoderModel, directory: str | Path, dtype: str = "fp32", max_shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a folder that ``transformers.T5EncoderModel.from_pretrained`` loads."""
    _save(model, directory, _TRANSFORMERS_STEM, dtype, max_shard_bytes)
    gated = model.config.feed_forward_proj.startswith("gated-")
    extra = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "is_gated_act": gated,
        "dense_act_fn": "gelu_new" if gated else "relu",
        "num_decoder_layers": model.config.num_layers,
        "use_cache": False,
    }
    write_text(Path(directory) / "config.json", json.dumps({**model.config.to_dict(), **extra}, indent=2) + "\n")


def save_scheduler(scheduler: Scheduler, directory: str | Path) -> None:
    """Writes ``scheduler_config.json`` for diffusers' class of the same name."""
    fields: dict[str, Any] = scheduler.config.to_dict()
    write_config(Path(directory) / "scheduler_config.json", type(scheduler).__name__, fields)


def save_model_index(directory: str | Path, scheduler: str = "CogVideoXDDIMScheduler") -> None:
    """Writes ``model_index.json``, which makes a folder of components a ``CogVideoXPipeline`` of diffusers."""
    parts = {
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    write_config(Path(directory) / "model_index.json", "CogVideoXPipeline", parts)


def parameter_digest(model: Model, read: Read | None = None) -> str:
    """SHA-256 over names, shapes and float32 bytes of all parameters, in the table's order; ``read`` as for saving."""
    digest = hashlib.sha256()
    for name in model.table:
        array = np.ascontiguousarray(parameter_array(model, name) if read is None else read(name))
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
