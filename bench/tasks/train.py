"""train: full fine-tuning or LoRA, on caches or on videos encoded in the loop; interrupted runs go on exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from bench.context import RunContext, synchronize
from bench.tasks import train_setup, work
from bench.tasks.models import Models
from bench.tasks.processes import processes_of
from bench.tasks.train_state import TrainingState, batch_digest, check_same_run, essentials, find_checkpoint
from core.data.prefetch import prefetch
from core.optim.lr import learning_rate
from core.train import checkpoint


def run(recipe: Any, ctx: RunContext) -> None:
    """Trains and writes, in the published layouts:

    ``<out>/transformer`` (or ``<out>/lora``, and with ``train.merge_lora`` the merged ``transformer`` too), with an
    EMA ``<out>/transformer_ema`` (``lora_ema``), and with ``train.save_every`` checkpoints (``core.train.checkpoint``).
    With ``train.resume`` it goes on from a checkpoint, with the bits of a run that was never interrupted.
    FloatingPointError ends a run whose loss, gradients or parameters are not finite.
    """
    folder = find_checkpoint(recipe.train.resume, ctx.out)
    models = Models(recipe, ctx)
    with ctx.stage("load"):
        trainer = _Trainer(recipe, ctx, models)
    start = trainer.resume(folder) if folder else 0
    trainer.loop(start)
    with ctx.stage("save"):
        trainer.export()


class _Trainer:
    """One run: its parts, and what is counted for the record."""

    def __init__(self, recipe: Any, ctx: RunContext, models: Models):
        self.recipe, self.ctx = recipe, ctx
        transformer, stored = train_setup.load_transformer(recipe, models)
        scheduler = models.scheduler(transformer.config, "ddim")
        self.processes = processes_of(recipe)
        self.row = self.processes.mesh.row(self.processes.rank)
        source = train_setup.ClipSource(recipe, models, transformer, self.processes.mesh.data)
        self.clips = source.training()
        self.validation = train_setup.make_validation(recipe, source, transformer, scheduler)
        lora = train_setup.start_lora(recipe, transformer)
        self.facts = self._facts(transformer, frozen=lora is not None)
        self.state = _state(recipe, transformer, scheduler, lora, self.processes, stored)
        if stored is not None:
            ctx.note("parameter_bytes_read", stored.bytes_read)
        self.shapes: set[tuple[int, ...]] = set()
        self.waited = self.worked = 0.0
        self.skipped = self.validated = 0
        self._note()

    def _facts(self, transformer: Any, *, frozen: bool) -> dict[str, Any]:
        from core import weights  # noqa: PLC0415 - imports mindspore

        data = self.recipe.data
        return {
            "recipe": essentials(self.recipe),
            "videos": train_setup.manifest_digest(data.csv, data.video_column),
            "frozen": weights.parameter_digest(transformer) if frozen else None,
        }

    def _note(self) -> None:
        frames = [bucket.frames for bucket in self.clips.buckets]
        latents = [(count - 1) // 4 + 1 for count in frames]
        latents = latents if self.recipe.video.buckets else latents[0]
        self.ctx.note("data", {"clips": len(self.clips), "latent_frames": latents, "encode": self.recipe.data.encode})
        self.ctx.note("buckets", self.clips.statistics())
        cuts = self.state.zero.tensors
        trained = {"tensors": len(cuts), "parameters": sum(math.prod(cut.shape) for cut in cuts)}
        self.ctx.note("trained", {"method": self.recipe.train.method, **trained})
        self.ctx.note("optimizer_state_bytes", self.state.optimizer.state_bytes())
        mesh, stage = self.processes.mesh, self.state.zero.stage
        layout = {"ranks": mesh.ranks, "sequence_parallel": mesh.sequence, "data_parallel": mesh.data}
        zero = {"zero_stage": stage, "zero_ranks": self.state.zero.group.size}
        self.ctx.note("parallel", layout | zero | {"parameter_bytes": self.state.zero.held_bytes()})

    def resume(self, folder: Any) -> int:
        """Takes over the checkpoint in ``folder``; the step to go on with."""
        with self.ctx.stage("resume"):
            state = checkpoint.load(folder)
            check_same_run(folder, state, self.facts, self.recipe.train.steps)
            if state.facts["last_batch"] != batch_digest(self.clips, state.step - 1):
                raise checkpoint.CheckpointError(
                    f"{folder}: the caches of step {state.step - 1} are not those that were trained on; put them back, "
                    "or start a new run"
                )
            self.state.take_over(folder, state)
        self.skipped = self.state.loss_scale.skipped if self.state.loss_scale else 0
        self.ctx.note("resumed", {"checkpoint": str(folder), "step": state.step})
        return state.step

    def loop(self, start: int) -> None:
        """Steps ``start`` to the last, with validations and checkpoints between them."""
        section, check = self.recipe.train, self.recipe.validation
        # Of the whole run, whatever step this attempt begins with: two runs differ from here on, or their data do.
        if (first := batch_digest(self.clips, 0)) is not None:
            self.ctx.digest_value("input/first_batch", first)
        batches = prefetch(self._load(step) for step in range(start, section.steps))
        for step in self.ctx.progress(range(start, section.steps), "train", total=section.steps - start):
            self._step(step, batches)
            last = step == section.steps - 1
            if check and ((step + 1) % check.every == 0 or last):
                self._validate(step)
            if section.save_every and ((step + 1) % section.save_every == 0 or last):
                with self.ctx.stage("checkpoint"):
                    self._save(step + 1)
        share = self.waited / self.worked if self.worked else None
        self.ctx.metric("data_wait_share", share, "1", None if share is not None else "no step after the compiled ones")
        self.ctx.note("skipped_steps", self.skipped)
        self.ctx.note("held_bytes", self.state.held_bytes())
        # Of all steps and of what was saved and validated between them, of this process.
        self.ctx.note("traffic", {"steps": section.steps - start, "sent": self.processes.traffic.table()})

    def _load(self, step: int) -> list[tuple[list[int], Any]]:
        return [(samples, self.clips.load(step, samples)) for samples in self.clips.micro_batches(step, self.row)]

    def _step(self, step: int, batches: Iterator[list[tuple[list[int], Any]]]) -> None:
        begin = time.perf_counter()
        micro = [self._batch(samples, loaded) for samples, loaded in next(batches)]
        waited = time.perf_counter() - begin
        lr = self._learning_rate(step)
        try:
            result = self.state.step_fn(step, micro, lr)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self._last_good()}") from None
        if self.state.ema and not result.skipped:
            self.state.ema.update(step, self.state.optimizer.values())
        synchronize()
        seconds = time.perf_counter() - begin
        self._record(step, micro, result, {"seconds": seconds, "waited": waited, "lr": lr})

    def _batch(self, samples: list[int], loaded: Any) -> Any:
        from core.train.step import Batch  # noqa: PLC0415

        batch = self.clips.finish(loaded)
        return Batch(
            latents=batch["latents"], text=batch["prompt_embeds"], samples=samples, files=batch["video"],
            bucket=batch["bucket"],
        )  # fmt: skip

    def _learning_rate(self, step: int) -> float:
        schedule = self.recipe.lr_schedule
        return learning_rate(
            step, base=self.recipe.optimizer.lr, schedule=schedule.name, warmup_steps=schedule.warmup_steps,
            total_steps=self.recipe.train.steps, end=schedule.end, power=schedule.power, cycles=schedule.cycles,
        )  # fmt: skip

    def _record(self, step: int, micro: list[Any], result: Any, times: dict[str, float]) -> None:
        bucket, samples = (
            self.clips.buckets[micro[0].bucket],
            sum(len(batch.samples) for batch in micro) * self.processes.mesh.data,
        )
        shape = (*micro[0].latents.shape, *micro[0].text.shape)
        new = shape not in self.shapes
        self.shapes.add(shape)
        if not new:
            self.waited, self.worked = self.waited + times["waited"], self.worked + times["seconds"]
        extra = {"data_seconds": times["waited"], "lr": times["lr"], "grad_norm": result.grad_norm}
        if self.recipe.video.buckets:
            extra["bucket"] = str(bucket)
        extra |= work.training(
            self.ctx, self.recipe, self.state.transformer.config, micro[0].latents.shape, micro[0].text.shape[1],
            len(micro), self.state.lora,
        )  # fmt: skip
        if self.state.loss_scale:
            extra |= {"loss_scale": self.state.loss_scale.value, "skipped": result.skipped}
            self.skipped = self.state.loss_scale.skipped
        self.ctx.step(
            step, times["seconds"], loss=result.loss, tags=("compile",) if new else (), samples=samples,
            frames=samples * bucket.frames, tokens=samples * _tokens(micro[0], self.state.transformer.config),
            extra=extra,
        )  # fmt: skip
        section = self.recipe.train
        if step % section.log_every == 0 or step == section.steps - 1:
            note = " skipped: the gradients overflowed" if result.skipped else ""
            text = f"step {step} loss {result.loss:.6f} grad_norm {result.grad_norm:.4f} seconds {times['seconds']:.3f}"
            print(text + note, flush=True)

    def _validate(self, step: int) -> None:
        begin = time.perf_counter()
        if self.state.ema:
            with self.state.averaged():
                result = self.validation()
        else:
            result = self.validation()
        seconds = time.perf_counter() - begin
        by_timestep = {str(timestep): loss for timestep, loss in result.by_timestep.items()}
        extra = {"validation": by_timestep, "clips": result.samples, "ema": self.state.ema is not None}
        self.ctx.step(step, seconds, loss=result.loss, tags=("eval",), extra=extra)
        self.ctx.metric("validation_loss", result.loss, "1")
        print(f"step {step} validation loss {result.loss:.6f}", flush=True)

    def _save(self, done: int) -> None:
        self._check_finite(done)
        facts = self.facts | {"last_batch": batch_digest(self.clips, done - 1)}
        self.state.save(self.ctx.out, done, facts, self.recipe.train.keep_checkpoints)

    def _check_finite(self, done: int) -> None:
        """A step may end in parameters that only the next loss would show to be broken."""
        norm = float(self.state.zero.norm([p.view(p.shape) for p in self.state.optimizer.parameters]))
        if norm - norm != 0:
            raise FloatingPointError(
                f"step {done - 1}: the norm of the parameters is {norm} after it: nothing was saved; lower "
                f"optimizer.lr; {self._last_good()}"
            )

    def _last_good(self) -> str:
        found = checkpoint.newest(self.ctx.out)
        return f"the last good checkpoint is {found}" if found else "there is no checkpoint (train.save_every)"

    def export(self) -> None:
        """Writes the trained weights and lists them."""
        state, ctx = self.state, self.ctx
        self._check_finite(self.recipe.train.steps)
        ctx.digest_value("parameters", state.digest())
        state.report_tensors(ctx, "parameters")
        names = {"transformer": "transformer", "lora": "lora", "ema": f"{'lora' if state.lora else 'transformer'}_ema"}
        for name, fill in state.exports().items():
            fill(ctx.out / names[name] if state.writes else None)
        written = [names[name] for name in state.exports()]
        if state.ema:
            with state.averaged():
                ctx.digest_value("ema", state.digest())
                state.report_tensors(ctx, "ema")
        if self.recipe.train.merge_lora:
            state.merge_and_save(ctx.out / "transformer" if state.writes else None)
            written.append("transformer")
        if not state.writes:
            return
        for folder in (*(ctx.out / name for name in written), *checkpoint.checkpoints(ctx.out)):
            for path in sorted(folder.rglob("*.safetensors")):
                ctx.artifact("checkpoint", path)


def _state(
    recipe: Any, transformer: Any, scheduler: Any, lora: Any, processes: Any, stored: Any = None
) -> TrainingState:
    from core.train.step import TrainStep  # noqa: PLC0415 - imports mindspore

    section = recipe.train
    train_setup.set_recompute(recipe, transformer)
    parameters = transformer.trainable_params() if lora is None else lora.parameters
    zero = train_setup.spread(recipe, transformer, parameters, processes, stored)
    optimizer, scale = train_setup.make_optimizer(recipe, zero), train_setup.make_loss_scale(recipe)
    in_backward = train_setup.make_in_backward(recipe, transformer, zero, optimizer)
    step_fn = TrainStep(
        transformer, scheduler, optimizer, max_grad_norm=section.max_grad_norm, seed=recipe.seed, loss=section.loss,
        timesteps=section.timesteps, loss_scale=scale, max_skips=section.loss_scale.max_skips, zero=zero,
        data_ranks=processes.mesh.data, in_backward=in_backward,
    )  # fmt: skip
    ema = train_setup.make_ema(recipe, zero.parameters)
    return TrainingState(
        transformer=transformer,
        lora=lora,
        optimizer=optimizer,
        ema=ema,
        loss_scale=scale,
        step_fn=step_fn,
        zero=zero,
    )


def _tokens(batch: Any, config: Any) -> int:
    """Tokens of one sample as the transformer sees them: video patches and text."""
    frames, _, height, width = batch.latents.shape[1:]
    patch = config.patch_size**2 * (config.patch_size_t or 1)
    return frames * height * width // patch + batch.text.shape[1]
