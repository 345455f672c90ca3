"""What the stored GLUE runs say: scores of the arms, paired by seed, and their tables."""

import math
import statistics
from typing import Any

from imm_lib.experiments import reading
from imm_lib.experiments.table import Row, Table

Interval = tuple[float, float | None]
"""A mean and the half-width of 95 %, None where there is one seed."""


def paired(result: dict, task: str | None = None, measure: str = "score") -> dict[str, dict]:
    """The arms of a task on the same seeds.

    Args:
        result: a stored result.
        task: of GLUE; by default the first of the result.
        measure: "score" or "auc", in per cent, or "nats".

    Returns:
        By arm "score", mean and half-width of 95 %; "gain", the same of the difference to "base"
        and "over MLM" to "MLM", paired by seed; "fitted", the task's training loss in the last
        epoch, nats; "step", CPU seconds of a step; "norms", the mean norms of the gradients by
        term; "seeds". Half-widths are None where there is one seed.
    """
    own, unit = _of(result, task), 1 if measure == "nats" else 100

    def score(row: Row) -> float:
        return unit * row[f"scores/{measure}"]

    found: dict[str, dict[str, Any]] = {}
    over = _changes(own, score, "MLM")
    for (arm,), (value, gain) in reading.paired(own, score, ["arm"], "base").items():
        runs = [e["numbers"]["history"] for e in own["units"] if e["unit"]["arm"] == arm]
        epochs = [epoch for run in runs for epoch in run]
        found[arm] = {
            "score": _interval(value),
            "gain": _interval(gain),
            "over MLM": over.get(arm),
            "fitted": statistics.fmean(run[-1]["task"] for run in runs),
            "step": statistics.fmean(epoch["cpu_s"] / epoch["steps"] for epoch in epochs),
            "norms": {
                key.removeprefix("norm "): statistics.fmean(epoch[key] for epoch in epochs)
                for key in epochs[0]
                if key.startswith("norm ")
            },
            "seeds": value.runs,
        }
    return found


def views(result: dict, task: str | None = None, over: str = "MLM") -> dict[str, dict]:
    """What the tuned models know of held-out words: means over the seeds and half-widths of 95 %,
    in nats.

    Args:
        result: a stored result whose runs took the premise of their tuned models.
        task: of GLUE; by default the first of the result.
        over: an arm.

    Returns:
        By arm the cross-entropies "target", "induced" and "prefix", see
        :func:`imm_lib.experiments.masked.premise`; and "induced over ARM" and "prefix over ARM",
        the differences to that arm, paired by seed. Half-widths are None where there is one seed,
        differences where there is no such arm.
    """
    own, found = _of(result, task), dict[str, dict]()
    for key in ("target", "induced", "prefix"):
        column = f"premise/{key}/mean"
        changes = _changes(own, column, over)
        for (arm,), (value, _) in reading.paired(own, column, ["arm"]).items():
            found.setdefault(arm, {})[key] = _interval(value)
            if key != "target":
                found[arm][f"{key} over {over}"] = changes.get(arm)
    return found


def _of(result: dict, task: str | None) -> dict:
    """The part of a result that is about a task."""
    task = task or result["config"]["tasks"][0]
    return result | {"units": [e for e in result["units"] if e["unit"]["task"] == task]}


def _changes(own: dict, column: reading.Column, over: str) -> dict[str, Interval | None]:
    if all(entry["unit"]["arm"] != over for entry in own["units"]):
        return {}
    found = reading.paired(own, column, ["arm"], over).items()
    return {arm: _interval(change) for (arm,), (_, change) in found}


def _interval(spread: reading.Spread | None) -> Interval | None:
    if spread is None:
        return None
    return spread.mean, None if math.isnan(spread.half) else spread.half


def _shown(pair: tuple | None) -> str:
    if pair is None:
        return ""
    return f"{pair[0]:.2f}" + (f" ± {pair[1]:.2f}" if pair[1] is not None else "")


def table(result: dict) -> list[list[str]]:
    """Every task and arm; the last column is of the tuned models' induced bigrams, where they were
    asked.
    """
    names = [
        "score",
        "less base",
        "less MLM",
        "AUC less MLM",
        "CPU s a step",
        "seeds",
        "induced less MLM, nats",
    ]
    rows = [["task", "arm", *names]]
    for task in result["config"]["tasks"]:
        area = paired(result, task, "auc")
        known = views(result, task) if result["config"].get("premise") else {}
        for arm, f in paired(result, task).items():
            cells = [_shown(f[key]) for key in ("score", "gain", "over MLM")] + [
                _shown(area[arm]["over MLM"])
            ]
            induced = _shown(known[arm]["induced over MLM"]) if known else ""
            rows.append([task, arm, *cells, f"{f['step']:.2f}", str(f["seeds"]), induced])
    return rows


def chosen(result: dict) -> dict[str, float]:
    """By arm the best of the numbers that were tried in it, by the area under the curve on held-out
    examples.
    """
    best: dict[str, tuple[float, float]] = {}
    for row in reading.rows(result):
        tried = row["scores/auc"], _tried(row)[1]
        best[row["arm"]] = max(best.get(row["arm"], (0.0, 0.0)), tried)
    return {arm: value for arm, (_, value) in best.items()}


def _tried(row: Row) -> tuple[str, float]:
    ((name, value),) = [(name, row[name]) for name in ("mlm", "lam") if name in row]
    return name, value


choice_table = Table(
    "scores",
    {
        "arm": "{arm}",
        "number": lambda row: "{} = {:g}".format(*_tried(row)),
        "log-loss, nats": "{nats:.4f}",
        "AUC": lambda row: f"{100 * row['auc']:.2f}",
        "score": lambda row: f"{100 * row['score']:.2f}",
    },
)
"""The held-out measures of every number that was tried."""

premise_table = Table(
    "{when}",
    {
        "task": "{task}",
        "pretraining": "{when}",
        "target": "{target/mean:.3f}",
        "induced bigram": "{induced/mean:.3f}",
        "model on its prefix": "{prefix/mean:.3f}",
        "target less induced": lambda row: "{:+.3f} ± {:.3f}".format(
            row["target - induced/mean"], 2 * row["target - induced/se"]
        ),
    },
    only=lambda row: row["when"] in ("before", "after"),
)
"""Cross-entropies on held-out words, before and after pretraining."""


def pretrain_table(result: dict) -> list[list[str]]:
    """The loss along the way."""
    losses = result["units"][0]["numbers"]["loss"]
    shown = range(0, len(losses), max(1, len(losses) // 10))
    return [
        ["share of steps", "loss, nats"],
        *([f"{i / len(losses):.2f}", f"{losses[i]:.3f}"] for i in shown),
    ]
