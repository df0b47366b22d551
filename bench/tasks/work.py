"""What a task's steps cost, for the record: FLOPs from the shapes that really ran (``bench.flops``)."""

from __future__ import annotations

from typing import Any

from bench.context import RunContext
from bench.flops import Product, Size, total, training_step, transformer
from bench.plan.workload import norm_first


def inference(ctx: RunContext, products: tuple[Product, ...]) -> dict[str, int]:
    """The ``extra`` of a step that runs ``products`` once; they become the shapes of the run's own peak."""
    ctx.products = products
    operations = total(products)
    return {"model_flops": operations, "hardware_flops": operations}


def training(
    ctx: RunContext, recipe: Any, config: Any, latents: tuple[int, ...], tokens: int, micro: int, lora: Any
) -> dict[str, int]:
    """The ``extra`` of a step of ``micro`` batches of ``latents`` ``[B, F, C, H, W]`` and text ``tokens``."""
    batch, frames, _, height, width = latents
    size = Size(batch=batch, frames=frames, height=height, width=width, text_tokens=tokens)
    ctx.products = transformer(config, size)
    names = {} if lora is None else lora.modules
    chunk, length = recipe.train.feed_forward_chunk, size.text_tokens + size.video_tokens(config)
    step = training_step(
        config, size, micro_batches=micro, recompute=recipe.train.recompute,
        recompute_every=recipe.train.recompute_every, scores_again=_scores_again(recipe, config, size),
        in_pieces=chunk is not None and size.batch * length > chunk, norm_first=norm_first(recipe.train),
        lora_rank=None if lora is None else lora.config.rank,
        lora_targets=sorted({name.split(".", 2)[-1] for name in names}),
    )  # fmt: skip
    return {"model_flops": step.model, "hardware_flops": step.hardware}


def _scores_again(recipe: Any, config: Any, size: Size) -> bool:
    """Whether attention's gradient computes its scores again: flash attention does, the CPU does in chunks."""
    if recipe.runtime.device != "cpu":
        return True
    from core.ops_cpu import CHUNK_BYTES  # noqa: PLC0415 - imports mindspore

    length = size.text_tokens + size.video_tokens(config)
    return CHUNK_BYTES // (4 * size.batch * config.num_attention_heads * length) < length
