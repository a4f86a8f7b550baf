"""Records a second and latencies of all variants, as bars on a logarithmic axis; colour says what durability."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.report import TITLES, Table, p50, p99, rate
from benchmarks.peers.system import DISK, MEMORY, PAGE_CACHE

COLOURS = {DISK: "#0f766e", PAGE_CACHE: "#60a5fa", MEMORY: "#c4b5a5"}
WORKS = ("produce", "produce-1k", "single", "consume", "latency")


def plot(path: Path, table: Table) -> None:
    """Does nothing where matplotlib is not installed; the page says so by not showing a picture."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    matplotlib.rcParams["svg.hashsalt"] = "streamkit"      # the same results make the same file
    works = [work for work in WORKS if work in table.works]
    variants = [variant for variant in table.variants if variant.key not in table.absent]
    if not works or not variants:
        return
    height = 1.2 + 0.24 * len(variants)
    figure, axes = pyplot.subplots(1, len(works), figsize=(3.2 * len(works) + 2, height), sharey=True, squeeze=False)
    for axis, work in zip(axes[0], works, strict=True):
        for i, variant in enumerate(variants):
            measured = table.measured(variant.key, work)
            if not measured.rounds:
                continue
            low, value = (p50, p99) if work == "latency" else (None, rate)
            height_value = measured.median(value)
            own = variant.name == "streamkit"
            axis.barh(i, height_value, color=COLOURS[variant.durability], edgecolor="black" if own else "none")
            if low is not None:
                axis.plot(measured.median(low), i, "|", color="black", markersize=9)
            text = f"{height_value:.2f} ms" if work == "latency" else _short(height_value)
            axis.text(height_value, i, f" {text}", va="center", fontsize=7)
        axis.set_xscale("log")
        axis.margins(x=0.3)
        axis.set_title(f"{TITLES[work]}\n{'p99 (mark: p50)' if work == 'latency' else 'records/s'}", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    names = [f"{variant.name} ×{variant.copies}, {variant.setting}" for variant in variants]
    axes[0][0].set_yticks(range(len(variants)), names)
    axes[0][0].invert_yaxis()
    handles = [Patch(color=colour, label=durability) for durability, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="lower right", ncols=3, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=140)
    pyplot.close(figure)


def _short(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k" if value >= 1e4 else f"{value:,.0f}"
