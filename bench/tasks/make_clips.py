"""Task make-clips: captioned clips of moving shapes in the original's layout."""

from __future__ import annotations

from typing import Any

from bench.context import RunContext
from core.data import shapes
from core.data.video_writer import save_video


def run(recipe: Any, ctx: RunContext) -> None:
    """Writes ``video_folder/part01/vid001.mp4, ...`` and then ``video_caption.csv`` to ``ctx.out``."""
    wanted = recipe.clips
    choice = {
        "shapes": wanted.shapes, "colors": wanted.colors, "motions": wanted.motions,
        "hold_out": wanted.hold_out, "hold_out_seed": wanted.hold_out_seed, "part": wanted.part,
    }  # fmt: skip
    ctx.note("combinations", [" ".join(names) for names in shapes.combinations(**choice)])
    rows = []
    with ctx.stage("make_clips", items=wanted.count, frames=wanted.count * wanted.frames):
        for index in ctx.progress(range(wanted.count), "clips", total=wanted.count):
            clip = shapes.draw_clip(recipe.seed, index, size=wanted.size, caption_drop=wanted.caption_drop, **choice)
            frames = shapes.render_clip(clip, frames=wanted.frames, height=wanted.height, width=wanted.width)
            name = shapes.video_name(index)
            codec = save_video(ctx.out / name, frames, fps=wanted.fps)
            ctx.artifact("video", ctx.out / name, caption=clip.caption)
            ctx.note("codec", codec)
            rows.append((name, clip.caption))
        ctx.artifact("table", shapes.write_csv(ctx.out, rows), rows=len(rows))
