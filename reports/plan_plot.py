"""A plan's phases as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.plots import SERIES, Plot, add_legend, finished, new_figure

_HATCHES = ("", "//", "..")  # classes beyond the six colours repeat them with a pattern


def plan_bars(plan: Mapping[str, Any], label: str = "") -> Plot | None:
    """Bytes of each class in each phase of ``cogbench plan --json``, with the card's limit; None for no plan.

    ``label``: the run whose plan it is.
    """
    if not plan.get("planned"):
        return None
    phases = plan["phases"]
    classes = list(dict.fromkeys(name for phase in phases for name in phase["bytes"]))
    figure, axes = new_figure(1.6 + 0.4 * len(phases) + 0.14 * len(classes))
    left = [0.0] * len(phases)
    for number, name in enumerate(classes):
        widths = [phase["bytes"].get(name, 0) / 2**30 for phase in phases]
        hatch = _HATCHES[number // len(SERIES) % len(_HATCHES)]
        color = SERIES[number % len(SERIES)]
        axes.barh(range(len(phases)), widths, left=left, height=0.6, color=color, hatch=hatch, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(phases)), [phase["name"] for phase in phases])
    axes.invert_yaxis()
    axes.set_xlabel("GiB per rank")
    caption = f"{label}: predicted" if label else "Predicted"
    caption += f" for {plan['sizes']} on {plan['profile']}."
    if plan["limit"] is not None:
        caption += f" The card has {plan['limit'] / 2**30:.3g} GiB."
    add_legend(axes, len(classes), below=True)
    return finished("plan", "Predicted memory by class", caption, figure)
