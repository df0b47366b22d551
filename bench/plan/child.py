"""One process that does what a plan predicts and counts its memory: ``python -m bench.plan.child FOLDER``.

The model, optimiser and step are those of the task ``train``; only the data are random instead of read from caches.
The job is ``FOLDER/job.json``; several ranks (``workers``) are started by msrun. Each process writes
``FOLDER/marks-RANK.json``: live bytes by class, and its high-water mark of each phase.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import rank as ranks
from bench.device import schedule_ranks, start_mindspore
from bench.lifeline import PARENT, end_with_parent
from bench.memory import process_hwm_bytes, reset_hwm
from core.files import write_text
from core.presets import PRESETS


def main(folder: str) -> None:
    """Runs the job and writes its marks."""
    job = json.loads(Path(folder, "job.json").read_text(encoding="utf-8"))
    from recipes.load import from_dict  # noqa: PLC0415

    recipe = from_dict(job["recipe"])
    workers = recipe.runtime.workers
    if workers > 1:
        end_with_parent(int(os.environ[PARENT]), signal.SIGTERM)
        if ranks.is_scheduler():
            schedule_ranks()
            return
        ranks.become(ranks.Rank(ranks.rank_number(), workers, ranks.identity_of(""), here=workers))
    start_mindspore(recipe.runtime, recipe.seed)
    import mindspore as ms  # noqa: PLC0415

    # Loads the libraries that any computation needs: they belong to the empty process, not to the model.
    ms.mint.matmul(ms.Tensor(np.ones((8, 8), np.float32)), ms.Tensor(np.ones((8, 8), np.float32))).asnumpy()
    phases: dict[str, int | None] = {"empty": process_hwm_bytes()}
    live = {"empty": lambda *_: {}, "write": _write, "train": _train, "text": _text}[job["what"]](recipe, job, phases)
    name = f"marks-{ranks.current().index}.json"
    write_text(Path(folder, name), json.dumps({"phases": phases, "live": live}))


class _Counting:
    """An optimiser that notes the bytes of the gradients it is given, and the peaks before and during its step."""

    def __init__(self, optimizer: Any, phases: dict[str, int | None]):
        self.inner, self.parameters, self.gradient_bytes = optimizer, optimizer.parameters, 0
        self._phases = phases

    def step(self, gradients: Any, lr: float, factor: Any) -> None:
        from bench.context import synchronize  # noqa: PLC0415

        synchronize()
        self.note("backward")
        self.gradient_bytes = _bytes(gradients)
        reset_hwm()
        self.inner.step(gradients, lr, factor)
        synchronize()
        self.note("update")

    def __getattr__(self, name: str) -> Any:
        """Whatever else the step asks of its optimiser."""
        return getattr(self.inner, name)

    def note(self, phase: str) -> None:
        """Raises the mark of ``phase`` to the process's."""
        self._phases[phase] = max(self._phases.get(phase) or 0, process_hwm_bytes() or 0)


def _bytes(tensors: Any) -> int:
    return sum(t.size * t.itemsize for t in tensors)


def _train(recipe: Any, job: dict, phases: dict[str, int | None]) -> dict[str, int]:
    from bench.context import synchronize  # noqa: PLC0415
    from bench.tasks import train_setup  # noqa: PLC0415
    from bench.tasks.processes import processes_of  # noqa: PLC0415
    from core import ops, weights  # noqa: PLC0415
    from core.train.step import TrainStep  # noqa: PLC0415
    from core.transformer.model import CogVideoXTransformer3DModel  # noqa: PLC0415

    preset = PRESETS[recipe.model.preset]
    config = replace(preset.transformer, **job["transformer"])
    dtype, _ = ops.compute_dtype(recipe.runtime.dtype)
    stored = None
    if recipe.parallel.zero_stage == 3 and recipe.train.method == "sft":  # as the task: each process reads its rows
        transformer, stored = weights.stored_transformer(Path(job["weights"]), recipe.runtime.dtype)
    else:
        transformer = CogVideoXTransformer3DModel(config, dtype).initialize(recipe.model.init_seed)
    lora = train_setup.start_lora(recipe, transformer)
    train_setup.set_recompute(recipe, transformer)
    parameters = transformer.trainable_params() if lora is None else lora.parameters
    processes = processes_of(recipe)
    zero = train_setup.spread(recipe, transformer, list(parameters), processes, stored)
    optimizer: Any = _Counting(train_setup.make_optimizer(recipe, zero), phases)
    in_backward = train_setup.make_in_backward(recipe, transformer, zero, optimizer.inner)
    ema = train_setup.make_ema(recipe, zero.parameters)
    section = recipe.train
    step = TrainStep(
        transformer, weights.make_scheduler(preset.scheduler, "ddim"), optimizer,
        max_grad_norm=section.max_grad_norm, seed=recipe.seed, loss=section.loss, timesteps=section.timesteps,
        zero=zero, data_ranks=processes.mesh.data, in_backward=in_backward,
    )  # fmt: skip
    synchronize()
    phases["built"] = process_hwm_bytes()
    row, data = processes.mesh.row(processes.rank), processes.mesh.data
    numbers = [n * data + row for n in range(section.gradient_accumulation_steps)]
    for index in range(job["steps"]):
        reset_hwm()
        step(index, [_batch(recipe, config, preset, n) for n in numbers], 1e-4)
        if in_backward is not None:
            synchronize()
            optimizer.note("backward")
            optimizer.gradient_bytes = in_backward.largest
        if ema:
            ema.update(index, optimizer.inner.values())
            synchronize()
            optimizer.note("update")
    processes.world.wait()  # who leaves right after its last message can make a neighbour's fail
    state, trained = optimizer.inner.state_bytes(), zero.held_bytes()
    return {
        "parameters": _bytes(transformer.get_parameters()),
        "masters": trained["parts"] if trained["whole"] else 0,
        "gradients": optimizer.gradient_bytes,
        "optimizer": sum(state.values()),
        "ema": sum(ema.state_bytes().values()) if ema else 0,
    }


def _write(recipe: Any, job: dict, phases: dict[str, int | None]) -> dict[str, int]:
    """Writes the transformer's checkpoint, which ``train`` in ZeRO stage 3 starts from."""
    from core import weights  # noqa: PLC0415
    from core.transformer.model import CogVideoXTransformer3DModel  # noqa: PLC0415

    config = replace(PRESETS[recipe.model.preset].transformer, **job["transformer"])
    model = CogVideoXTransformer3DModel(config).initialize(recipe.model.init_seed)
    weights.save_transformer(model, Path(job["weights"]) / "transformer")
    return {}


def _text(recipe: Any, job: dict, phases: dict[str, int | None]) -> dict[str, int]:
    """A text encoder of the job's sizes over random tokens."""
    import mindspore as ms  # noqa: PLC0415

    from bench.context import synchronize  # noqa: PLC0415
    from core.text.t5 import T5EncoderModel  # noqa: PLC0415

    config = replace(PRESETS[recipe.model.preset].text, **job["text"])
    encoder = T5EncoderModel(config).initialize(recipe.model.init_seed)
    synchronize()
    phases["built"] = process_hwm_bytes()
    reset_hwm()
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (job["batch"], job["tokens"]), np.int32)
    encoder(ms.Tensor(ids)).asnumpy()
    phases["text encode"] = process_hwm_bytes()
    return {"parameters": _bytes(encoder.get_parameters())}


def _batch(recipe: Any, config: Any, preset: Any, number: int) -> Any:
    from bench.tasks.train_setup import latent_frames  # noqa: PLC0415
    from core.train.step import Batch  # noqa: PLC0415

    rng, size = np.random.default_rng(number), recipe.train.batch_size
    ratio, patch_t = preset.vae.spatial_compression_ratio, config.patch_size_t or 1
    frames = -(-latent_frames(recipe) // patch_t) * patch_t
    shape = (size, frames, config.in_channels, recipe.video.height // ratio, recipe.video.width // ratio)
    text = (size, recipe.text.max_length or config.max_text_seq_length, config.text_embed_dim)
    return Batch(
        latents=rng.standard_normal(shape, np.float32),
        text=rng.standard_normal(text, np.float32),
        samples=list(range(number * size, (number + 1) * size)),
        files=["random"] * size,
    )


if __name__ == "__main__":
    main(sys.argv[1])
