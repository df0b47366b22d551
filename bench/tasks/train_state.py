"""Everything a training run changes, and how it is saved, compared and taken over."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.context import RunContext
from bench.tasks.models import digest_parameters
from core.errors import UserError
from core.train import checkpoint
from core.train.checkpoint import CheckpointError, State, joined, split
from core.train.parts import Writers

# Sections and keys that change no number of a training step, and paths: files may have moved, so what they hold is
# compared instead (the videos' names, the last batch, the frozen weights).
_FREE = frozenset(
    {"schema", "kind", "name", "description", "output", "validation", "model.path", "model.transformer", "model.vae"}
    | {"model.text_encoder", "model.tokenizer", "model.scheduler", "model.lora", "data.csv", "data.text_embed_folder"}
    | {"data.video_embed_folder", "data.video_folder", "train.steps", "train.save_every", "train.keep_checkpoints"}
    | {"train.resume", "train.merge_lora", "train.log_every", "runtime.timeout_s", "runtime.repeats"}
    | {"runtime.max_device_memory", "runtime.log_level", "runtime.measure_peak", "runtime.workers", "parallel"}
)


@dataclass(kw_only=True)
class TrainingState:
    """The parts of a run that training changes; every process of the run calls the methods that save or digest."""

    transformer: Any
    lora: Any
    optimizer: Any
    ema: Any
    loss_scale: Any
    step_fn: Any
    zero: Any

    @property
    def writes(self) -> bool:
        """Whether this process writes what is there once."""
        return self.zero.group.index == 0 and self.zero.copy == 0

    def held_bytes(self) -> dict[str, int]:
        """Bytes of the tensors that live through a step on this process, by the classes of ``bench.plan.memory``."""
        trained, states = self.zero.held_bytes(), self.optimizer.state_bytes()
        names = set(self.zero.names)
        frozen = sum(p.size * p.itemsize for p in self.transformer.get_parameters() if p.name not in names)
        # Parts beside whole parameters are what the optimiser updates; alone (ZeRO-3) they are the parameters.
        parameters, masters = trained["whole"] or trained["parts"], trained["parts"] if trained["whole"] else 0
        held = {
            "parameters": frozen + parameters,
            "gradients": self.step_fn.gradient_bytes or 0,
            "masters": masters + states.pop("master", 0),
            "optimizer": sum(states.values()),
            "ema": sum(self.ema.state_bytes().values()) if self.ema else 0,
        }
        return {name: size for name, size in held.items() if size}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model computes with the averages."""
        with self.ema.swapped():
            self.zero.publish()
            yield
        self.zero.publish()

    def exports(self) -> dict[str, Any]:
        """Folder -> function that writes it, for a checkpoint: weights in the published layouts.

        Called with None, a function only gives other processes what this one holds.
        """
        name = "transformer" if self.lora is None else "lora"

        def averages(folder: Path | None) -> None:
            with self.averaged():
                self._write_weights(folder)

        return {name: self._write_weights} | ({"ema": averages} if self.ema else {})

    def _write_weights(self, folder: Path | None) -> None:
        from core import weights  # noqa: PLC0415 - imports mindspore
        from core.lora import save_lora  # noqa: PLC0415

        if self.lora is not None:
            self._assemble_lora()
            if folder is not None:
                save_lora(self.lora, folder)
            return
        missing = list(self.transformer.table)

        def read(name: str) -> np.ndarray:
            missing.remove(name)
            return self.zero.array(name)

        try:
            if folder is not None:
                weights.save_transformer(self.transformer, folder, read=read)
        finally:
            # After a full disk, too, the other processes wait for this one's rows.
            for name in list(missing):
                read(name)

    def _assemble_lora(self) -> None:
        """Puts the whole LoRA where it is read from when it is saved or merged."""
        if self.zero.stage:
            self.lora.assign(dict(self.zero.arrays()))

    def digest(self) -> str:
        """sha256 of what is trained: the transformer, or the LoRA's parameters."""
        from core import weights  # noqa: PLC0415

        if self.lora is None:
            return weights.parameter_digest(self.transformer, self.zero.array)
        digest = hashlib.sha256()
        for name, array in self.zero.arrays():
            digest.update(f"{name} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def report_tensors(self, ctx: RunContext, group: str) -> None:
        """Records the digest of each tensor that is trained (and of the frozen ones of a full fine-tuning)."""
        if self.lora is None:
            digest_parameters(ctx, group, self.transformer, self.zero.array)
            return
        for name, array in self.lora.arrays().items():
            ctx.tensor(group, name, array)

    def merge_and_save(self, folder: Path | None) -> None:
        """Writes the transformer with the LoRA in its weights; the LoRA is gone afterwards."""
        from core import weights  # noqa: PLC0415

        self._assemble_lora()
        if folder is not None:
            weights.save_transformer(self.lora.merge(), folder)

    def arrays_and_numbers(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a checkpoint holds besides ``exports``: fp32 arrays, and numbers that JSON keeps exactly.

        Of arrays that are spread over processes, this one's rows.
        """
        state = self.optimizer.state()
        numbers = {name: int(value) for name, value in state.items() if value.dtype != np.float32}
        own = {name: value for name, value in state.items() if name not in numbers}
        parts = {"optimizer": self.zero.rows_held(own)}
        if self.lora is not None:
            self._assemble_lora()
            parts["lora"] = self.lora.arrays() if self.writes else {}
            parts |= {"average": self.zero.rows_held(self.ema.state())} if self.ema else {}
        scale = self.loss_scale.state() if self.loss_scale else {}
        step = {"skips_in_a_row": self.step_fn.skips_in_a_row}
        return joined(**parts), joined(optimizer=numbers, loss_scale=scale, step=step)

    def save(self, out: Path, step: int, facts: dict[str, Any], keep: int | None) -> Path:
        """Writes the checkpoint after ``step`` steps."""
        arrays, numbers = self.arrays_and_numbers()
        state = State(step=step, arrays=arrays, numbers=numbers, facts=facts, parted=self.zero.stage > 0)
        group = self.zero.group
        writers = Writers(group.index, group.size, self.zero.agree, self.zero.copy)
        return checkpoint.save(out, state, self.exports(), keep=keep, writers=writers)

    def take_over(self, folder: Path, state: State) -> None:
        """Sets everything to what ``save`` wrote in ``folder``, by whatever number of processes."""
        if self.lora is None:
            self._read_weights(folder / "transformer", self.zero.assign)
        else:
            for name, array in _starting(state.arrays, "lora."):
                self.zero.assign(name, array)
        self.zero.publish()
        numbers = {name: np.array(value, np.int64) for name, value in split("optimizer", state.numbers).items()}
        shapes = {name: value.shape for name, value in self.optimizer.state().items()}
        own = self.zero.own_rows(_starting(state.arrays, "optimizer."), shapes)
        self.optimizer.load_state(numbers | own)
        if self.ema:
            averages: dict[str, np.ndarray] = {}
            if self.lora is None:
                self._read_weights(folder / "ema", lambda name, array: averages.update({f"ema.{name}": array}))
            else:
                averages = dict(_starting(state.arrays, "average."))
            wanted = {name: value.shape for name, value in self.ema.state().items()}
            self.ema.load_state(self.zero.own_rows(averages.items(), wanted))
        if self.loss_scale:
            self.loss_scale.load_state(split("loss_scale", state.numbers))
        self.step_fn.skips_in_a_row = split("step", state.numbers)["skips_in_a_row"]

    def _read_weights(self, folder: Path, take: Callable[[str, np.ndarray], Any]) -> None:
        """Gives ``take`` the trained tensors of a full fine-tuning one by one; the others have not changed."""
        from core.checkpoint import Checkpoint  # noqa: PLC0415

        with Checkpoint(folder) as stored:
            stored.check(self.transformer.table, {})
            for name in self.zero.names:
                take(name, stored.tensor(name))


def _starting(arrays: Mapping[str, np.ndarray], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Entries with ``prefix``, without it, one in memory at a time."""
    return ((name.removeprefix(prefix), arrays[name]) for name in arrays if name.startswith(prefix))


def essentials(recipe: Any) -> dict[str, Any]:
    """The recipe's values that decide the numbers of each step, by dotted key."""
    flat = _flat(recipe.model_dump(mode="json", by_alias=True))
    values = {key: value for key, value in flat.items() if not _free(key)}
    # Fewer data-parallel processes with more micro-batches each take the same samples.
    data_ranks = recipe.runtime.workers // recipe.parallel.sequence_parallel
    values["train.gradient_accumulation_steps"] = recipe.train.gradient_accumulation_steps * data_ranks
    if recipe.lr_schedule.name != "constant":
        values["train.steps"] = recipe.train.steps
    return values


def _free(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[: n + 1]) in _FREE for n in range(len(parts)))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}.{name}" if prefix else name).items()
    }


def batch_digest(clips: Any, step: int) -> str | None:
    """sha256 of the latents and text of optimizer step ``step``; None where clips are encoded in the loop.

    Cached ones are the same bytes on every machine; encoders round in another way on each.
    """
    from core.data.loader import CachedClips  # noqa: PLC0415

    if not isinstance(clips, CachedClips):
        return None
    digest = hashlib.sha256()
    # One by one: the same however many processes share the step.
    for sample in range(clips.samples(step)):
        batch = clips.sample(step, sample)
        for name in ("latents", "prompt_embeds"):
            digest.update(np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()


def find_checkpoint(resume: str | None, out: Path) -> Path | None:
    """The checkpoint to go on from, None to begin.

    Raises:
        UserError: it is not there; or ``out`` holds checkpoints that the run would come to write again.
    """
    checkpoint.clean(out)
    newest = checkpoint.newest(out)
    if resume is None and newest is not None:
        raise UserError(
            f"output.folder: {out} holds {newest.name} of an earlier run, which would be overwritten: go on from it "
            "with train.resume: latest (or --resume), remove it, or choose another folder"
        )
    if resume in (None, checkpoint.LATEST):
        return newest
    folder = Path(str(resume))
    if not folder.is_dir():
        raise UserError(f"train.resume: no folder {folder}; need latest or a checkpoint's folder")
    if newest is not None and checkpoint.step_of(newest) > checkpoint.step_of(folder):
        raise UserError(
            f"train.resume: {folder.name}, but {out} holds the later {newest.name}, which would be overwritten: "
            "remove it, choose another output.folder, or resume from latest"
        )
    return folder


def check_same_run(folder: Path, state: State, facts: dict[str, Any], steps: int) -> None:
    """CheckpointError naming what differs if the checkpoint is not one of this recipe with this data."""
    if state.step > steps:
        raise CheckpointError(f"{folder}: {state.step} steps are done, train.steps is {steps}: raise it")
    problems = _differences(state.facts.get("recipe", {}), facts["recipe"])
    problems += [words for name, words in _CONTENT.items() if state.facts.get(name) != facts[name]]
    if problems:
        falling = any(problem.startswith("train.steps") for problem in problems)
        hint = " (with a schedule that falls, train.steps decides every learning rate)" if falling else ""
        raise CheckpointError(
            f"{folder}: a checkpoint of another run: {'; '.join(problems)}{hint}; go back to these values, or start a "
            "new run with model.transformer set to the checkpoint's transformer"
        )


_CONTENT = {
    "videos": "data.csv names other videos",
    "frozen": "the frozen weights below the LoRA are others",
}


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    def shown(values: dict[str, Any], key: str) -> str:
        return repr(values[key]) if key in values else "absent"

    keys = [*saved, *(key for key in now if key not in saved)]
    pairs = [(key, shown(saved, key), shown(now, key)) for key in keys]
    # A section that appears or goes is told by its keys.
    sections = {key.rpartition(".")[0] for key in keys}
    return [f"{key} was {old} and is {new}" for key, old, new in pairs if old != new and key not in sections]
