"""What is started when, and waited for when, with a group that writes it down; one process, so values are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from core import ops
from core.optim.adamw import AdamW
from core.parallel.ahead import Ahead
from core.parallel.collectives import Group, alone
from core.parallel.cut import Cut
from core.parallel.handles import Handle
from core.parallel.reducing import Reducer, added
from core.parallel.traffic import BUCKET_BYTES, Traffic
from core.parallel.zero import Zero
from core.presets import PRESETS
from core.schedulers.ddim import CogVideoXDDIMScheduler
from core.train.step import Batch, TrainStep
from core.transformer.model import CogVideoXTransformer3DModel


class _Noted(Handle):
    """Tells when it is waited for."""

    def __init__(self, name: Any, events: list, result: Any = None):
        super().__init__(result)
        self._name, self._events = name, events

    def wait(self):
        self._events.append(("wait", self._name))
        return super().wait()


def test_the_next_hand_out_is_under_way_before_this_one_computes():
    events: list = []

    def start(place):
        events.append(("start", place))
        return _Noted(place, events)

    def run(order):
        events.clear()
        ahead.begin()
        for place in order:
            ahead.take(place).wait()
            events.append(("compute", place))
        ahead.end()
        return list(events)

    a, b, c, other = ("a",), ("b",), ("c",), ("other",)
    ahead = Ahead(start)
    # Forward, and the backward pass in reverse. The first pass learns.
    order = [a, b, c, c, b, a]
    first = [(what, place) for place in order for what in ("start", "wait", "compute")]
    assert run(order) == first
    early = [("start", a), ("start", b), ("wait", a), ("compute", a)]
    early += [("start", c), ("wait", b), ("compute", b), ("start", c), ("wait", c), ("compute", c)]
    early += [("start", b), ("wait", c), ("compute", c), ("start", a), ("wait", b), ("compute", b)]
    early += [("wait", a), ("compute", a)]
    assert run(order) == early
    # Another order: what was fetched for nothing is waited for, the right one is gathered, nothing is kept.
    strange = run([a, other, c])
    assert strange[4:8] == [("wait", b), ("start", other), ("wait", other), ("compute", other)]
    assert sum(what == "start" for what, _ in strange) == sum(what == "wait" for what, _ in strange)
    # Between passes nothing is fetched early: parameters move.
    events.clear()
    ahead.take(a).wait()
    assert events == [("start", a), ("wait", a)]


def test_buckets_start_inside_the_backward_pass_and_are_waited_for_after_it(monkeypatch):
    monkeypatch.setitem(BUCKET_BYTES, "CPU", 4 * 4)
    events: list = []

    def start(bucket, gradients):
        events.append(("start", bucket, [float(g.asnumpy()[0]) for g in gradients]))
        return _Noted(bucket, events, bucket)

    cuts = [Cut((2,), 2) for _ in range(6)]  # buckets [0, 1], [2, 3], [4, 5]
    reducer = Reducer(cuts, [ms.float32] * 6, start)
    values = [ms.Tensor(np.full(2, i, np.float32)) for i in range(6)]
    reducer.begin(first=True, last=False)
    reducer.add([5, 4, 1, 2, 3], [ms.Tensor(np.full(2, 100, np.float32)) for _ in range(5)])
    assert reducer.lacking([0, 1]) == [0]
    reducer.add([0], [ms.Tensor(np.full(2, 100, np.float32))])
    assert events == [], "before a step's last micro-batch nothing is sent"
    reducer.begin(first=False, last=True)
    given = values[4:]
    reducer.add([4, 5], given)
    assert given == [None, None]
    assert events == [("start", [4, 5], [104.0, 105.0])]
    reducer.add([1, 3], [values[1], values[3]])
    reducer.add([2], [values[2]])
    assert events[1:] == [("start", [2, 3], [102.0, 103.0])]
    # Number 0 is computed with in the first micro-batch only.
    found = list(reducer.finish())
    assert events[2:] == [("start", [0, 1], [100.0, 101.0]), *(("wait", b) for b in ([4, 5], [2, 3], [0, 1]))]
    assert [bucket for bucket, _ in found] == [[4, 5], [2, 3], [0, 1]]
    # The next step begins with nothing.
    reducer.begin(first=True, last=True)
    assert reducer.lacking(range(6)) == [*range(6)]


class _Watching(Group):
    """One process that tells when its parameters are gathered."""

    def __init__(self, events: list):
        super().__init__((0,), 0, Traffic())
        self.events, self.count = events, 0

    def start(self, kind, x, purpose):
        assert (kind, purpose) == ("all_gather", "parameters")
        self.count += 1
        self.events.append(("start", self.count))
        return _Noted(self.count, self.events, x)


class _Pretended(Group):
    """One process that says it is two, which hold the same: sums are twice its own."""

    def __init__(self, events: list):
        super().__init__((0,), 0, Traffic())
        self.size, self.events = 2, events

    def start(self, kind, x, purpose):
        self.events.append(("start", kind))
        found = {"all_reduce": lambda: x * 2, "reduce_scatter": lambda: x[: x.shape[0] // 2] * 2}[kind]()
        return _Noted(kind, self.events, found)


def _stepped(
    stage: int, group: Group, micro_batches: int, events: list, recompute: Any = "none"
) -> tuple[list[ms.Tensor], list]:
    """The gradients of a step of a tiny model, reduced; and what happened."""
    ops.configure(mode="pynative")
    config = replace(PRESETS["tiny-1.5"].transformer, num_layers=2, attention_head_dim=16, num_attention_heads=2)
    model = CogVideoXTransformer3DModel(config).initialize(0)
    model.recompute(recompute)
    zero = Zero(model, model.trainable_params(), group, stage)
    optimizer = AdamW(zero.parameters, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    step = TrainStep(
        model, CogVideoXDDIMScheduler(PRESETS["tiny-1.5"].scheduler), optimizer, max_grad_norm=None, seed=0, zero=zero
    )
    rng = np.random.default_rng(0)
    shape = (1, 2, config.in_channels, 4, 4)
    batches = [
        Batch(
            latents=rng.standard_normal(shape).astype(np.float32),
            text=rng.standard_normal((1, 3, config.text_embed_dim)).astype(np.float32),
            samples=[i], files=["f"],
        )
        for i in range(micro_batches)
    ]  # fmt: skip
    backward = step._gradients

    def watched(*arguments):
        events.append(("pass", "begins"))
        found = backward(*arguments)
        events.append(("pass", "ends"))
        return found

    step._gradients = watched
    step._passes(0, batches, 1.0)
    return zero.reduced(), events


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_a_training_step_gathers_one_hand_out_ahead(recompute):
    """Three passes: the first learns the order; in each other one the next gathering begins before this one's end."""
    plain, _ = _stepped(0, alone().world, 3, [], recompute)
    found, events = _stepped(3, _Watching(got := []), 3, got, recompute)
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(one.asnumpy().reshape(other.shape), other.asnumpy())
    passes, now = [], []
    for event in events:
        if event == ("pass", "ends"):
            passes.append(now)
        now = [] if event[0] == "pass" else [*now, event]
    first, *others = passes
    count = len(first) // 2
    assert count >= 5 + (2 if recompute == "all" else 0)
    assert [what for what, _ in first] == ["start", "wait"] * count, "nothing is known yet"
    for events_of_pass in others:
        assert [what for what, _ in events_of_pass] == ["start", *["start", "wait"] * (count - 1), "wait"]
        waits = [number for what, number in events_of_pass if what == "wait"]
        assert waits == sorted(waits)


@pytest.mark.parametrize(("stage", "kind", "micro_batches"), [(0, "all_reduce", 2), (1, "reduce_scatter", 1)])
def test_a_training_step_sums_while_it_computes(stage, kind, micro_batches, monkeypatch):
    monkeypatch.setitem(BUCKET_BYTES, "CPU", 4 * 4096)
    plain, _ = _stepped(0, alone().world, micro_batches, [])
    found, events = _stepped(stage, _Pretended(got := []), micro_batches, got)
    end = len(events) - 1 - events[::-1].index(("pass", "ends"))
    begin = len(events) - 1 - events[::-1].index(("pass", "begins"))
    inside, after = events[begin + 1 : end], events[end + 1 :]
    assert ("start", kind) not in events[:begin], "only the last micro-batch's pass"
    assert inside.count(("start", kind)) >= 3
    assert ("wait", kind) not in inside
    assert after.count(("wait", kind)) == events.count(("start", kind))
    for one, other in zip(found, plain, strict=True):
        whole = 2 * other.asnumpy()
        expected = whole if stage == 0 else Cut(whole.shape, 2).part(whole, 0)
        np.testing.assert_array_equal(one.asnumpy(), expected)


def test_the_sum_over_micro_batches_is_fp32():
    first, more = ([ms.Tensor(np.ones(2, np.float32)).astype(ms.bfloat16)] for _ in range(2))
    total = added([], first)
    assert [q.dtype for q in total] == [ms.bfloat16]
    assert first == []
    assert added(total, more)[0].dtype == ms.float32
    assert more == [None], "no third copy"
