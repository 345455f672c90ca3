"""The numbers of a stored run and their pictures, the front page's among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import imm_lib as imm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = {
    "baseline": imm.plotting.METHOD_STYLE["baseline"],
    "interpolation": imm.plotting.METHOD_STYLE["interpolation"],
    "reverse-KD": imm.plotting.METHOD_STYLE["reverse-KD"],
    "offset": imm.plotting.Style("#661100", "p", ":"),
    "IMM": imm.plotting.METHOD_STYLE["IMM exact"],
}
"""The methods of the front page's picture, by their names in results, and how they look."""


def cells(result: dict, sensor: str, n: int) -> list[dict]:
    """The numbers of all seeds of one sensor and size."""
    entries = [
        e["numbers"]
        for e in result["units"]
        if (e["unit"]["sensor"], e["unit"]["n"]) == (sensor, n)
    ]
    if not entries:
        raise ValueError(f"the result has no sensor {sensor!r} with n = {n!r}")
    return entries


def gain(
    entries: list[dict],
    method: str,
    score: str = "loss",
    choice: str | None = None,
    against: str = "baseline",
) -> tuple[float, float]:
    """Paired change of a test score, mean and half width: below 0 is better for "loss", above for
    "accuracy".
    """
    tests = [(e if choice is None else e[choice])["test"] for e in entries]
    return imm.results.mean_interval([test[method][score] - test[against][score] for test in tests])


def payoff(result: dict) -> dict:
    """What the front page's picture draws, for the first sensor: mean test losses, and paired
    changes ± half widths.
    """
    sensor, sizes = next(iter(result["config"]["sensors"].items()))
    at = [cells(result, sensor, n) for n in sizes]
    return {
        "sensor": sensor,
        "n": sizes,
        "target": [
            imm.results.mean_interval([e["target"]["loss"] for e in entries])[0] for entries in at
        ],
        "loss": {
            m: [imm.results.mean_interval([e["test"][m]["loss"] for e in es])[0] for es in at]
            for m in METHODS
        },
        "gain": {m: [gain(es, m) for es in at] for m in METHODS if m != "baseline"},
    }


def draw(result: dict) -> Figure:
    """Two panels: test loss over n, and what each method changes against the baseline, with 95 %
    intervals.
    """
    from matplotlib import pyplot

    numbers = payoff(result)
    figure, (left, right) = pyplot.subplots(2, 1, figsize=(5.0, 5.6), sharex=True)
    left.plot(
        numbers["n"],
        numbers["target"],
        label="restricted model",
        **imm.plotting.METHOD_STYLE["target"]._asdict(),
    )
    for i, (method, style) in enumerate(METHODS.items()):
        look = style._asdict()
        left.plot(numbers["n"], numbers["loss"][method], label=method, **look)
        if method in numbers["gain"]:
            middle, half = zip(*numbers["gain"][method], strict=True)
            shifted = [n * 1.03 ** (2 * i - 5) for n in numbers["n"]]
            right.errorbar(shifted, middle, half, label=method, capsize=3, **look)
    right.axhline(0, color="black", linewidth=1)
    left.set_ylabel("test log-loss (nats)")
    right.set_ylabel("change (nats)")
    right.set_xlabel("cases with all sensors, n")
    right.set_xscale("log", base=2)
    right.set_xticks(numbers["n"], [str(n) for n in numbers["n"]])
    right.minorticks_off()
    left.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False)
    return figure


def curve(result: dict, sensor: str, n: int, method: str) -> list[tuple[float, float]]:
    """Paired change of the test loss at every weight of the extra term, none of them selected: mean
    and half width.
    """
    losses = [e["curves"][method] for e in cells(result, sensor, n)]
    return [
        imm.results.mean_interval([loss[i] - loss[0] for loss in losses])
        for i in range(1, len(losses[0]))
    ]


def draw_curves(result: dict) -> Figure:
    """The first sensor's curves over the weight, for the smallest (above) and the largest n
    (below).
    """
    from matplotlib import pyplot

    sensor, sizes = next(iter(result["config"]["sensors"].items()))
    figure, axes = pyplot.subplots(2, 1, figsize=(5.0, 5.2), sharex=True)
    for ax, n in zip(axes, (sizes[0], sizes[-1]), strict=True):
        for style, method in (("reverse-KD", "reverse-KD"), ("IMM exact", "IMM")):
            pairs = curve(result, sensor, n, method)
            low, mid, high = ([m + sign * half for m, half in pairs] for sign in (-1, 0, 1))
            imm.plotting.band(ax, result["config"]["lambdas"], low, mid, high, style)
        ax.axhline(0, color="black", linewidth=1)
        ax.set(xscale="log", ylabel="change (nats)", title=f"n = {n}")
    axes[0].legend()
    axes[1].set_xlabel("weight λ")
    return figure


def diagnostics(result: dict) -> list[dict]:
    """For every sensor and n: how far the target is ahead, IMM's change, and how the two go
    together over the seeds.
    """
    from scipy.stats import spearmanr

    rows = []
    for sensor, sizes in result["config"]["sensors"].items():
        for n in sizes:
            entries = cells(result, sensor, n)
            ahead = [e["diagnostic"] for e in entries]
            change = [e["test"]["IMM"]["loss"] - e["test"]["baseline"]["loss"] for e in entries]
            rows.append(
                {
                    "sensor": sensor,
                    "n": n,
                    "ahead": imm.results.mean_interval(ahead),
                    "change": imm.results.mean_interval(change),
                    "rank correlation": float(spearmanr(ahead, change).statistic),
                    "behind": [c for a, c in zip(ahead, change, strict=True) if a <= 0],
                }
            )
    return rows


def draw_diagnostics(result: dict) -> Figure:
    """IMM's change of the test loss over how far the target is ahead, a marker per sensor, a colour
    per n.
    """
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(5.0, 3.8))
    rows = diagnostics(result)
    sizes = sorted({row["n"] for row in rows})
    colors = dict(zip(sizes, imm.plotting.COLORS.values(), strict=False))
    markers = dict(zip(result["config"]["sensors"], "o^sD", strict=True))
    for row in rows:
        (x, x_half), (y, y_half) = row["ahead"], row["change"]
        look = {
            "color": colors[row["n"]],
            "fmt": markers[row["sensor"]],
            "linewidth": 1,
            "capsize": 2,
        }
        ax.errorbar(x, y, y_half, x_half, **look)
        ax.annotate(
            str(row["n"]),
            (x, y),
            (5, 5),
            textcoords="offset points",
            fontsize=10,
            color=colors[row["n"]],
        )
    for sensor, marker in markers.items():
        ax.plot([], [], marker, color="#555555", label=sensor)
    ax.axhline(0, color="black", linewidth=1)
    ax.set(xlabel="target ahead (nats)", ylabel="change by IMM (nats)")
    ax.legend(loc="lower left")
    return figure


def write_picture(result: dict, file: Path) -> None:
    """Save the picture as SVG, with the numbers it draws as its description, so that a test can
    compare them.
    """
    from matplotlib import pyplot

    imm.plotting.use_style()
    figure = draw(result)
    figure.savefig(file, metadata={"Date": None, "Description": json.dumps(payoff(result))})
    pyplot.close(figure)
