"""Bytes per rank by class for each phase of a training step. Pure functions, no MindSpore.

A phase is a moment at which memory may peak; its classes add up to its total, and the plan's peak is the largest total.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.plan.liveness import backward_bytes, kept_between_passes
from bench.plan.workload import Training, elements, held_shape
from core.parallel.traffic import BUCKET_BYTES
from core.params import ParamTable, prefixed
from core.transformer.parameters import block_table

# core.optim.foreach, which cannot be imported without MindSpore; a test compares them.
MAX_TENSORS, MAX_BYTES = 8, 2**25
MAIN = 3  # copies of a bundle's values that an update holds: new value and two averages, before the old ones go


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A moment of the run and the bytes of each class at it."""

    name: str
    bytes: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all classes."""
        return sum(self.bytes.values())


def peak(phases: list[Phase]) -> Phase:
    """The phase with the largest total."""
    return max(phases, key=lambda phase: phase.total)


def state_classes(work: Training) -> dict[str, int]:
    """Bytes that are held through the whole step: parameters, masters, optimiser state, EMA."""
    trained = work.held(work.trained, from_stage=1)
    parameters, masters = _our_values(work) if work.ours else _values(work)
    classes = {
        "parameters": parameters,
        "masters": masters,
        "optimizer": optimizer_bytes(
            work.trained, work.optimizer, work.state_itemsize, work.parts(from_stage=1), padded=work.ours
        ),
        "ema": 4 * trained if work.ema else 0,
    }
    return {name: value for name, value in classes.items() if value}


def _values(work: Training) -> tuple[int, int]:
    """Bytes of the parameters, which stage 3 cuts, and of the masters beside them."""
    parameters = work.held(work.table, from_stage=3) * work.stored
    if work.lora is not None:
        parameters += work.held(work.lora, from_stage=3) * 4
    return parameters, 4 * work.held(work.trained, from_stage=1) if work.masters else 0


def _our_values(work: Training) -> tuple[int, int]:
    """The same of ``core.parallel.zero``: what is trained is whole beside fp32 parts (stages 1 and 2) or fp32 parts
    alone (stage 3, which needs no other copy); what is frozen is whole on every rank."""
    frozen = elements(work.table) - (0 if work.lora is not None else elements(work.trained))
    parts = 4 * work.held(work.trained, from_stage=1)
    if work.zero_stage == 3:
        return frozen * work.stored + parts, 0
    whole = elements(work.trained) * work.trained_itemsize
    return frozen * work.stored + whole, parts if work.masters or work.zero_stage else 0


def _sum_bytes(work: Training) -> int:
    """Bytes of a trained element's gradient once it is summed over micro-batches or ranks: ours are fp32 sums."""
    alone = work.accumulation == 1 and work.ranks == 1 and not work.zero_stage
    return work.trained_itemsize if alone or not work.ours else 4


def optimizer_bytes(table: ParamTable, name: str, itemsize: int = 4, shards: int = 1, *, padded: bool = True) -> int:
    """State of AdamW (two averages) or CAME (one, and of matrices row and column averages of update and residual)."""
    if name == "adamw":
        return 2 * itemsize * elements(table, shards, padded=padded)
    assert name == "came", name
    total = 0
    for spec in table.values():
        shape = held_shape(tuple(spec.shape), shards, padded=padded)
        total += math.prod(shape)
        if len(shape) < 2:
            total += math.prod(shape)
            continue
        # Of a matrix, the rows are what is cut: every rank has all column averages (docs/design/007).
        total += 2 * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1])
    return itemsize * total


def _block(work: Training, index: int) -> ParamTable:
    prefix = f"transformer_blocks.{index}"
    if work.lora is not None:
        return {n: s for n, s in work.lora.items() if n.startswith(prefix + ".")}
    return prefixed(prefix, block_table(work.config))


def training_phases(work: Training, *, reserve: int = 0, resident: dict[str, int] | None = None) -> list[Phase]:
    """The moments of an optimiser step at which memory may peak.

    Args:
        work: the step.
        reserve: bytes that the framework and the driver hold.
        resident: further models on the device (encoders of ``data.encode: online``).
    """
    held = state_classes(work) | (resident or {}) | ({"reserve": reserve} if reserve else {})
    count, item = work.config.num_layers, work.trained_itemsize
    block, trained = _block(work, 0), work.held(work.trained, from_stage=2)
    one = item if work.zero_stage < 2 else _sum_bytes(work)
    per_block = work.held(block, from_stage=2) * one
    outer = trained * one - per_block * count  # patches, time, head: small
    waiting = trained * _sum_bytes(work) if work.accumulation > 1 else 0  # the sum so far
    kept = [kept_between_passes(work, index) for index in range(count)]
    communication = _communication(work)
    phases = []
    for name, index in (("backward, last block", count - 1), ("backward, first block", 0)):
        done = 0 if work.in_backward else outer + per_block * (count - 1 - index)
        phases.append(
            Phase(
                name=name,
                bytes=held
                | {
                    "gradients": waiting + done + elements(block) * item,
                    "activations": sum(kept[: index + 1]),
                    "block": backward_bytes(work, index),
                    "attention": attention_workspace(work),
                    "communication": communication,
                },
            )
        )
    gradients = work.held(work.trained, from_stage=1 if work.ours else 2) * _sum_bytes(work)
    if work.in_backward:
        gradients = largest_hand_out(work.trained) * item
    update = {"gradients": gradients, "block": update_bytes(work), "communication": communication}
    phases.append(Phase(name="optimiser update", bytes=held | update))
    return [Phase(name=p.name, bytes={k: v for k, v in p.bytes.items() if v}) for p in phases]


def largest_hand_out(table: ParamTable) -> int:
    """Elements of the parameters that the model hands out together: a block, or what comes before or after them."""
    sizes: dict[str, int] = {}
    for name, spec in table.items():
        parts = name.split(".")
        key = ".".join(parts[:2]) if parts[0] == "transformer_blocks" else TAIL.get(parts[0], parts[0])
        sizes[key] = sizes.get(key, 0) + math.prod(spec.shape)
    return max(sizes.values())


TAIL: dict[str, str] = dict.fromkeys(("norm_final", "norm_out", "proj_out"), "tail")


def attention_workspace(work: Training) -> int:
    """Bytes of temporaries inside attention's gradient: none for fused kernels on a device.

    Ours on the CPU (``core/kernels_attention.cpp``) has transposed keys and values and a block's scores and slopes in
    each thread, and as many threads as work: one for each head of each sample, up to the machine's cores, of which one
    is counted here. Without a C++ compiler MindSpore's operators hold matrices of scores, which are not in the plan.
    """
    if work.code != "cpu":
        return 0
    size = -(-work.config.attention_head_dim // CPU_LANES) * CPU_LANES
    keys = -(-work.tokens // CPU_PANEL) * CPU_PANEL
    block = max(8, min(CPU_QUERIES, CPU_SCORES // keys // 8 * 8))
    return 4 * (2 * keys * size + block * (2 * keys + 3 * size))


CPU_LANES, CPU_PANEL, CPU_QUERIES, CPU_SCORES = 16, 48, 64, 2**17  # of core/kernels_attention.cpp


def message_bytes(work: Training) -> int:
    """Bytes of gradients that are under way to other ranks and of their sum, in fp32: of a bucket in ZeRO stages 0 and
    1, of a block above. Ours; parameters that are published after an update take no more."""
    parts = work.parts(from_stage=1)
    if not work.ours or max(parts, work.ranks) == 1:
        return 0
    if work.zero_stage < 2:
        one = min(BUCKET_BYTES["CPU" if work.code == "cpu" else "Ascend"], 4 * elements(work.trained))
    else:
        one = 4 * elements(_block(work, 0))
    return one + -(-one // parts)


def _communication(work: Training) -> int:
    """Bytes of gathered parameters (ZeRO 3: one block's, with ours the next one's too, which are under way), of
    gradients under way, and of the two buffers of an all-to-all (sequence parallel)."""
    total = message_bytes(work)
    parts = work.parts(from_stage=3)
    if parts > 1:
        block = parts * work.held(prefixed("b", block_table(work.config)), from_stage=3) * work.stored
        total += (2 if work.ours else 1) * block
    if work.sequence_parallel > 1:
        total += 2 * work.batch * work.local_tokens * work.config.inner_dim * work.computed
    return total


def update_bytes(work: Training) -> int:
    """Bytes that one bundle of the update holds beside the state: new value and averages, and fp32 gradients.

    None where kernels do it in place: on the CPU, but for CAME's parts."""
    if work.code == "cpu" and (work.optimizer == "adamw" or work.parts(from_stage=1) == 1):
        return 0  # kernels, in place
    largest = 0
    for spec in work.trained.values():
        one = 4 * math.prod(held_shape(tuple(spec.shape), work.parts(from_stage=1), padded=work.ours))
        largest = max(largest, one * max(1, min(MAX_TENSORS, MAX_BYTES // max(1, one))))
    return (MAIN + 1) * largest
