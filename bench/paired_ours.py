"""Our side of a pair: writes the weights that both sides read, then does the work with ``core``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import paired_inputs
from bench.context import synchronize
from bench.device import start_mindspore

Call = Callable[[int], Any]


def prepare(recipe: Any, folder: Path, *, written: bool = False) -> tuple[Call, dict[str, Any]]:
    """The call ``index -> output`` (an array, or the loss of a training step) and facts for the record.

    The weights go through ``folder``, in the published layout, so that both sides have the same; ``written``: another
    process has written them.
    """
    runtime = start_mindspore(recipe.runtime, recipe.seed)
    if not written:
        write(recipe, folder)
    call = {
        "transformer": _transformer, "train": _train, "vae-encode": _vae_encode, "vae-decode": _vae_decode,
        "text-encode": _text, "generate": _generate,
    }[recipe.case](recipe, folder)  # fmt: skip

    def synchronized(index: int) -> Any:
        result = call(index)
        synchronize()
        return result

    return synchronized, {"runtime": runtime}


def array(result: Any) -> np.ndarray:
    """A call's output as an array."""
    return np.asarray(result.asnumpy() if hasattr(result, "asnumpy") else result, np.float32)


def write(recipe: Any, folder: Path) -> None:
    """Only the parts that the case needs, one after the other."""
    from core import weights  # noqa: PLC0415 - imports mindspore

    sizes, seed = paired_inputs.sizes(recipe), recipe.model.init_seed
    if recipe.case in ("transformer", "train", "generate"):
        from core.transformer.model import CogVideoXTransformer3DModel  # noqa: PLC0415

        model = CogVideoXTransformer3DModel(sizes.transformer).initialize(seed)
        weights.save_transformer(model, folder / "transformer")
    if recipe.case in ("vae-encode", "vae-decode", "generate"):
        from core.vae.model import AutoencoderKLCogVideoX  # noqa: PLC0415

        weights.save_vae(AutoencoderKLCogVideoX(sizes.vae).initialize(seed), folder / "vae")
    if recipe.case in ("text-encode", "generate"):
        from core.text.t5 import T5EncoderModel  # noqa: PLC0415

        weights.save_text_encoder(T5EncoderModel(sizes.text).initialize(seed), folder / "text_encoder")
    weights.save_scheduler(weights.make_scheduler(sizes.scheduler, "ddim"), folder / "scheduler")
    if recipe.case == "generate":
        from core.data.shapes import all_captions  # noqa: PLC0415
        from core.text.tokenizer import train_tiny_tokenizer  # noqa: PLC0415

        train_tiny_tokenizer(all_captions(), folder / "tokenizer", vocab_size=sizes.text.vocab_size)
        weights.save_model_index(folder)
    if recipe.case == "train" and recipe.train.method == "lora":
        from core.lora import save_lora  # noqa: PLC0415

        save_lora(_with_lora(recipe, weights.load_transformer(folder / "transformer")), folder / "lora")


def _with_lora(recipe: Any, transformer: Any) -> Any:
    from core.lora import LoRAConfig, attach  # noqa: PLC0415

    section = recipe.lora
    return attach(transformer, LoRAConfig(rank=section.rank, alpha=section.alpha, targets=section.targets), recipe.seed)


def _tensors(recipe: Any) -> dict[str, Any]:
    import mindspore as ms  # noqa: PLC0415

    return {name: ms.Tensor(value) for name, value in paired_inputs.inputs(recipe).items()}


def _transformer(recipe: Any, folder: Path) -> Call:
    from core import weights  # noqa: PLC0415

    model, given = weights.load_transformer(folder / "transformer"), _tensors(recipe)
    return lambda _index: model(given["latents"], given["text"], given["timestep"])


def _train(recipe: Any, folder: Path) -> Call:
    from bench.tasks.train_setup import make_in_backward, make_optimizer  # noqa: PLC0415
    from core import weights  # noqa: PLC0415
    from core.lora import load_lora  # noqa: PLC0415
    from core.parallel.collectives import alone  # noqa: PLC0415
    from core.parallel.zero import Zero  # noqa: PLC0415
    from core.train.step import Batch, TrainStep  # noqa: PLC0415

    model = weights.load_transformer(folder / "transformer")
    if recipe.train.method == "lora":
        parameters = load_lora(model, folder / "lora").parameters
    else:
        parameters = model.trainable_params()
    model.recompute(recipe.train.recompute)
    model.enable_forward_chunking(recipe.train.feed_forward_chunk)
    zero = Zero(model, list(parameters), alone().world, 0)
    optimizer = make_optimizer(recipe, zero)
    step = TrainStep(
        model, weights.load_scheduler(folder, "ddim"), optimizer, max_grad_norm=recipe.train.max_grad_norm,
        seed=recipe.seed, zero=zero, in_backward=make_in_backward(recipe, model, zero, optimizer),
    )  # fmt: skip
    given, samples = paired_inputs.inputs(recipe), list(range(recipe.batch_size))
    batch = Batch(latents=given["latents"], text=given["text"], samples=samples, files=[str(s) for s in samples])
    return lambda index: step(index, [batch], recipe.optimizer.lr).loss


def _vae_encode(recipe: Any, folder: Path) -> Call:
    from bench.tasks.models import tiling_of  # noqa: PLC0415
    from core import weights  # noqa: PLC0415

    vae, given, tiling = weights.load_vae(folder / "vae"), _tensors(recipe), tiling_of(recipe.vae)
    return lambda _index: vae.encode(given["video"], tiling)[0]


def _vae_decode(recipe: Any, folder: Path) -> Call:
    from bench.tasks.models import tiling_of  # noqa: PLC0415
    from core import weights  # noqa: PLC0415

    vae, given, tiling = weights.load_vae(folder / "vae"), _tensors(recipe), tiling_of(recipe.vae)
    return lambda _index: vae.decode(given["latents"], tiling)


def _text(recipe: Any, folder: Path) -> Call:
    import mindspore as ms  # noqa: PLC0415

    from core import weights  # noqa: PLC0415

    encoder = weights.load_text_encoder(folder / "text_encoder")
    ids = ms.Tensor(paired_inputs.inputs(recipe)["input_ids"].astype(np.int32))
    return lambda _index: encoder(ids)


def _generate(recipe: Any, folder: Path) -> Call:
    from bench.tasks.models import tiling_of  # noqa: PLC0415
    from core import sample, weights  # noqa: PLC0415
    from core.text.tokenizer import Tokenizer  # noqa: PLC0415

    sampling = sample.Sampling(num_inference_steps=recipe.sampling.steps, guidance_scale=recipe.sampling.guidance_scale)
    parts: dict[str, Any] = {
        "transformer": weights.load_transformer(folder / "transformer"), "vae": weights.load_vae(folder / "vae"),
        "text_encoder": weights.load_text_encoder(folder / "text_encoder"),
        "scheduler": weights.load_scheduler(folder, "ddim"), "tokenizer": Tokenizer(folder / "tokenizer"),
    }  # fmt: skip
    video, latents = recipe.video, paired_inputs.inputs(recipe)["latents"]

    def call(_index: int) -> np.ndarray:
        """Frames in [0, 1] ``[B, T, 3, H, W]``, as the reference's pipeline hands them out."""
        made = sample.generate(
            **parts, height=video.height, width=video.width, num_frames=video.frames, sampling=sampling,
            prompt=[paired_inputs.PROMPT] * recipe.batch_size, max_sequence_length=recipe.text_length, latents=latents,
            tiling=tiling_of(recipe.vae),
        )  # fmt: skip
        return np.clip(made * 0.5 + 0.5, 0.0, 1.0).transpose(0, 2, 1, 3, 4)

    return call
