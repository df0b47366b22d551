"""A task of several ranks that joins them through MindSpore as every real task does; one can pretend to be another."""

from __future__ import annotations

from types import SimpleNamespace

from bench import rank as ranks
from bench.device import start_mindspore
from tests.distributed import fake_ranks

_PRETENCES = {"other_recipe": {"recipe digest": "0" * 64}, "other_code": {"code commit": "0" * 40}}


def run(recipe: dict, ctx) -> None:
    """Starts MindSpore on all ranks, then does what ``fake_ranks`` does."""
    fault = recipe.get("fault")
    if fault in _PRETENCES and ctx.rank.index == recipe["at_rank"]:
        here = ranks.current()
        ranks.become(ranks.Rank(here.index, here.of, dict(here.identity or {}) | _PRETENCES[fault], here.here))
        recipe = recipe | {"fault": "none"}
    runtime = SimpleNamespace(
        device="cpu", mode="pynative", jit_level="O0", dtype="fp32", deterministic=True, max_device_memory=None,
        kernels="operators",
    )  # fmt: skip
    start_mindspore(runtime, 0)
    from bench.gathered import gather_facts

    ctx.note("sum of ranks", sum(facts["rank"] for facts in gather_facts({"rank": ctx.rank.index})))
    fake_ranks.run(recipe, ctx)
