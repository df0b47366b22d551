"""Training of a tiny model by several layouts of processes, each against one process with the same global batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import communication

from core import draws, ops
from core.configs import TransformerConfig
from core.lora import LoRAConfig, attach
from core.optim.adamw import AdamW
from core.optim.came import CAME
from core.optim.loss_scale import LossScale
from core.parallel.collectives import Processes, alone, joined
from core.parallel.gathering import Gathering
from core.parallel.ulysses import Ulysses
from core.parallel.zero import Zero
from core.presets import PRESETS
from core.train.step import Batch, TrainStep
from core.transformer.model import CogVideoXTransformer3DModel, Recompute
from core.weights import make_scheduler

# The published recipe's. With 1e-30 a gradient that is nothing but rounding becomes a whole step, other on each layout.
CAME_EPS = (1e-8, 1e-8)
STEPS, GLOBAL_BATCH = 20, 4
# name -> (sequence parallel, ZeRO stage); the rest of the ranks is data parallel.
LAYOUTS = {
    2: {"sp2": (2, 0), "dp2": (1, 0), "dp2-zero1": (1, 1), "dp2-zero2": (1, 2), "dp2-zero3": (1, 3)},
    4: {"sp4-zero2": (4, 2), "sp2-dp2-zero2": (2, 2), "sp2-dp2-zero3": (2, 3)},
}
FEW_STEPS = 2
# name -> (sequence parallel, ZeRO stage, over the data-parallel processes only), two steps each
FEW = {
    2: {},
    4: {
        "sp4-zero1": (4, 1, False), "sp4-zero3": (4, 3, False), "sp2-dp2-zero1-over-dp": (2, 1, True),
        "sp2-dp2-zero2-over-dp": (2, 2, True), "sp2-dp2-zero3-over-dp": (2, 3, True),
    },
}  # fmt: skip
# Of eight ranks, two steps each: (sequence parallel, ZeRO stage, optimiser). Most rows have padding then.
EIGHT = {"sp2-dp4-zero2": (2, 2, "adamw"), "sp4-dp2-zero2": (4, 2, "came")}
GRAPH: list[tuple[int, str, Recompute]] = [(2, "adamw", "none"), (3, "came", "all")]
UPDATES = {"adamw": ("adamw", CAME_EPS), "came": ("came", CAME_EPS), "came-1e-30": ("came", (1e-30, 1e-16))}
METHODS = ("sft", "lora")
# One block; 10 text features and a LoRA of rank 3 divide by neither 2 nor 4 ranks everywhere.
CONFIG = replace(
    PRESETS["tiny-1.5"].transformer, num_layers=1, text_embed_dim=10, num_attention_heads=4, attention_head_dim=16,
    time_embed_dim=9,
)  # fmt: skip
LORA = LoRAConfig(rank=3, alpha=6.0, targets=("to_q", "to_v"))
SCHEDULER = make_scheduler(PRESETS["tiny-1.5"].scheduler, "ddim")


def samples_of(step: int) -> int:
    """Samples of a step: every fourth one accumulates over twice as many micro-batches."""
    return GLOBAL_BATCH if step % 4 == 0 else GLOBAL_BATCH // 2


def batch(step: int, samples: list[int], config: TransformerConfig = CONFIG) -> Batch:
    """Samples of a step by their numbers; 3 text tokens and 15 video tokens, which 2 and 4 ranks do not divide."""
    rng = [draws.generator(5, "test batch", step, sample) for sample in samples]
    latents = np.stack([g.standard_normal((2, config.in_channels, 6, 10), np.float32) for g in rng])
    text = np.stack([g.standard_normal((3, config.text_embed_dim), np.float32) for g in rng])
    return Batch(latents=latents, text=text, samples=samples, files=[f"clip{s}" for s in samples])


class Training:
    """A model, its optimiser and the step, laid out over ``processes``."""

    def __init__(
        self, processes: Processes, stage: int, optimizer: str, method: str, recompute: Recompute = "none", *,
        config: TransformerConfig = CONFIG, dtype: Any = ms.float32, samples: Callable[[int], int] = samples_of,
        max_grad_norm: float | None = 0.5, loss_scale: LossScale | None = None, lora: LoRAConfig = LORA,
        eps: tuple[float, float] = CAME_EPS, subset: bool = False, batch_size: int = 1,
        chunk: int | None = None,
    ):  # fmt: skip
        self.processes, self.samples, self.batch_size = processes, samples, batch_size
        # The CPU computes in fp32 whatever the parameters are stored in.
        self.model = CogVideoXTransformer3DModel(config, dtype, ms.float32).initialize(0)
        self.model.recompute(recompute)
        self.model.enable_forward_chunking(chunk)
        attached = attach(self.model, lora, 1) if method == "lora" else None
        parameters = self.model.trainable_params() if attached is None else attached.parameters
        self.model.communicate(Ulysses(processes.sequence))
        # A subset: the processes with the same tokens of other samples; those that share a sample hold the same parts.
        group, replicas = (processes.data, processes.sequence) if subset else (processes.world, None)
        self.zero = Zero(self.model, parameters, group, stage, replicas=replicas)
        if optimizer == "adamw":
            self.optimizer: Any = AdamW(self.zero.parameters, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        else:
            self.optimizer = CAME(
                self.zero.parameters, betas=(0.9, 0.95, 0.99), eps=eps, weight_decay=0.1,
                **self.zero.came_options(),
            )  # fmt: skip
        self.step_fn = TrainStep(
            self.model, SCHEDULER, self.optimizer, max_grad_norm=max_grad_norm, seed=3, zero=self.zero,
            data_ranks=processes.mesh.data, loss_scale=loss_scale,
        )  # fmt: skip

    def run(self, start: int, stop: int) -> list[tuple[float, float]]:
        """Losses and gradient norms of the steps; each rank takes its micro-batches of ``batch_size`` samples."""
        mesh, row = self.processes.mesh, self.processes.mesh.row(self.processes.rank)
        curve = []
        for step in range(start, stop):
            mine = [m * mesh.data + row for m in range(self.samples(step) // mesh.data)]
            micro = [mine[first : first + self.batch_size] for first in range(0, len(mine), self.batch_size)]
            result = self.step_fn(step, [batch(step, s, self.model.config) for s in micro], 1e-3)
            curve.append((result.loss, result.grad_norm))
        return curve

    def values(self) -> np.ndarray:
        """All trained values behind each other."""
        return np.concatenate([array.ravel() for _, array in self.zero.arrays()])


def batch_size(data: int) -> int:
    """Samples of a pass: with every fourth step's double number each of ``data`` ranks still adds up two passes."""
    return 2 if data == 1 else 1


def four_samples(_step: int) -> int:
    """Enough for four data-parallel ranks at every step."""
    return GLOBAL_BATCH


def single(
    optimizer: str, method: str, steps: int = STEPS, samples: Callable[[int], int] = samples_of
) -> dict[str, np.ndarray]:
    """What one process gets."""
    training = Training(alone(), 0, optimizer, method, samples=samples, batch_size=batch_size(1))
    return {"curve": np.array(training.run(0, steps)), "values": training.values()}


def case_train_adamw() -> dict[str, Any]:
    """Every layout and method with AdamW."""
    return _train("adamw")


def case_train_came() -> dict[str, Any]:
    """The same with CAME."""
    return _train("came")


def _train(optimizer: str) -> dict[str, Any]:
    """Every layout and method: curve, final values, whether ranks agree after each step, bytes held."""
    found: dict[str, Any] = {}
    for layout, (sequence, stage) in LAYOUTS[communication.get_group_size()].items():
        for method in METHODS:
            key, processes = f"{layout}/{optimizer}/{method}", joined(sequence)
            recompute = "all" if stage == 3 else "none"
            size = batch_size(processes.mesh.data)
            training = Training(processes, stage, optimizer, method, recompute, batch_size=size)
            curve, agree = [], []
            for step in range(STEPS):
                curve += training.run(step, step + 1)
                agree.append(_agree(training))
            found[f"{key}/curve"] = np.array(curve)
            found[f"{key}/values"] = training.values()
            found[f"{key}/agree"] = agree
            held = training.zero.held_bytes()
            state = training.optimizer.state_bytes()
            found[f"{key}/held"] = [held["whole"], held["parts"], sum(state.values())]
            found[f"{key}/cut"] = [sum(cut.part_size for cut in training.zero.cuts)]
            print(key, flush=True)
    return found


def case_few_steps() -> dict[str, Any]:
    """Layouts that are as the others but for one thing: two steps of each."""
    found: dict[str, Any] = {}
    for layout, (sequence, stage, subset) in FEW[communication.get_group_size()].items():
        for optimizer in ("adamw", "came"):
            recompute = "all" if stage == 3 else "none"
            processes = joined(sequence)
            size = batch_size(processes.mesh.data)
            training = Training(processes, stage, optimizer, "sft", recompute, subset=subset, batch_size=size)
            found |= _outcome(f"{layout}/{optimizer}", training)
    return found


def _outcome(key: str, training: Training) -> dict[str, Any]:
    """Two steps: curve, final values, whether ranks agree, bytes of whole parameters and of parts."""
    curve, held = np.array(training.run(0, FEW_STEPS)), training.zero.held_bytes()
    found = {"curve": curve, "values": training.values(), "agree": _agree(training)}
    return {f"{key}/{name}": value for name, value in (found | {"held": [held["whole"], held["parts"]]}).items()}


def case_pieces() -> dict[str, Any]:
    """Feed-forwards in pieces of five tokens, two steps of every layout with AdamW; stage 3 computes again."""
    found: dict[str, Any] = {}
    for layout, (sequence, stage) in LAYOUTS[communication.get_group_size()].items():
        for method in METHODS:
            processes, recompute = joined(sequence), "all" if stage == 3 else "none"
            size = batch_size(processes.mesh.data)
            training = Training(processes, stage, "adamw", method, recompute, batch_size=size, chunk=5)
            found |= _outcome(f"{layout}/{method}", training)
    return found


def case_eight() -> dict[str, Any]:
    """As many processes as a machine has cards."""
    found: dict[str, Any] = {}
    for layout, (sequence, stage, optimizer) in EIGHT.items():
        training = Training(joined(sequence), stage, optimizer, "sft", samples=four_samples)
        found |= _outcome(layout, training)
    return found


def case_overflow() -> dict[str, Any]:
    """Four steps by each stage; in the second, one rank's sample alone has gradients whose squares overflow."""
    found: dict[str, Any] = {}
    for stage in range(4):
        scale = LossScale.dynamic(2.0**40, window=100)
        training = Training(joined(1), stage, "adamw", "sft", samples=lambda _: 2, loss_scale=scale)
        rank, rows = training.processes.rank, []
        for step in range(4):
            before = training.values()
            given = batch(step, [rank])
            if step == 1 and rank == 1:
                given = replace(given, latents=given.latents * np.float32(1e9))
            result = training.step_fn(step, [given], 1e-3)
            moved = not np.array_equal(before, training.values())
            rows.append([result.skipped, moved, scale.value, scale.skipped, result.loss])
        found[str(stage)] = rows
        found[f"{stage}/agree"] = _agree(training)
    return found


def case_graph() -> dict[str, Any]:
    """Compiled blocks and updates, two steps: ZeRO-2 with AdamW and, computing again, ZeRO-3 with CAME."""
    found: dict[str, Any] = {}
    ops.configure(mode="graph")
    for stage, optimizer, recompute in GRAPH:
        training = Training(joined(1), stage, optimizer, "sft", recompute)
        found[f"{stage}/curve"] = np.array(training.run(0, FEW_STEPS))
        found[f"{stage}/values"] = training.values()
    ops.configure()
    return found


def case_same_gradients() -> dict[str, Any]:
    """Five updates by given gradients: rank 0 has them, the others zeros, so that the sum has no rounding.

    CAME's second eps pair is came-pytorch's, far below what gradients may round to (docs/design/011).
    """
    found: dict[str, Any] = {}
    for name, (optimizer, eps) in updates(communication.get_group_size()).items():
        for stage in (1, 2, 3):
            training = Training(joined(1), stage, optimizer, "sft", eps=eps)
            for gradients in given_gradients(training.zero.cuts):
                mine = [ms.Tensor(g if training.processes.rank == 0 else np.zeros_like(g)) for g in gradients]
                cuts = tuple(training.zero.cuts)
                parts = Gathering(training.processes.world, (), cuts, ms.float32, ms.float32).scatter(mine)
                training.optimizer.step(parts, 1e-2)
            found[f"{name}/{stage}"] = training.values()
    return found


def updates(ranks: int) -> dict[str, tuple[str, tuple[float, float]]]:
    """The optimisers of ``case_same_gradients``; the other eps on two ranks only."""
    return {name: given for name, given in UPDATES.items() if ranks == 2 or name != "came-1e-30"}


def given_gradients(cuts: Any) -> list[list[np.ndarray]]:
    """Five sets of gradients of the tensors ``cuts``."""
    rng = np.random.default_rng(4)
    return [[rng.standard_normal(cut.shape).astype(np.float32) for cut in cuts] for _ in range(5)]


def _agree(training: Training) -> bool:
    """Whether the whole parameters that the model computes with are the same bits on all ranks."""
    whole = training.zero.whole
    if not whole:  # stage 3 has none; each part is on one rank only
        return True
    digest = hashlib.sha256()
    for q in whole:
        digest.update(q.asnumpy().tobytes())
    own = np.frombuffer(digest.digest(), np.uint8).astype(np.float32)
    total = training.processes.world.all_gather(ms.Tensor(own[None]), "test").asnumpy()
    return bool(all(np.array_equal(row, own) for row in total))
