"""What the stored GLUE runs say: the course of the arms, what was chosen, and their tables."""

import statistics

from imm_lib.experiments import reading
from imm_lib.experiments.table import Row, Table


def _step(row: Row) -> float:
    """CPU seconds of a step."""
    return statistics.fmean(epoch["cpu_s"] / epoch["steps"] for epoch in row["history"])


def course(result: dict) -> dict[str, dict]:
    """By arm, means over the seeds: "fitted", the task's training loss in the last epoch, nats;
    "step", CPU seconds of a step; "norms", those of the gradients by term.
    """
    found = {}
    for arm in dict.fromkeys(entry["unit"]["arm"] for entry in result["units"]):
        runs = [row for row in reading.rows(result) if row["arm"] == arm]
        epochs = [epoch for row in runs for epoch in row["history"]]
        norms = [key for key in epochs[0] if key.startswith("norm ")]
        found[arm] = {
            "fitted": statistics.fmean(row["history"][-1]["task"] for row in runs),
            "step": statistics.fmean(map(_step, runs)),
            "norms": {
                key.removeprefix("norm "): statistics.fmean(epoch[key] for epoch in epochs)
                for key in norms
            },
        }
    return found


def table(result: dict) -> list[list[str]]:
    """Every task and arm, less masked words alone where these were run; with the tuned models'
    induced bigrams, where they were asked.
    """
    columns: dict[str, reading.Column] = {
        "score, %": lambda row: 100 * row["scores/score"],
        "AUC, %": lambda row: 100 * row["scores/auc"],
        "CPU s a step": _step,
    }
    if result["config"].get("premise"):
        columns["induced bigram, nats"] = "premise/induced/mean"
    there = any(entry["unit"]["arm"] == "MLM" for entry in result["units"])
    return reading.listed(result, columns, ["task", "arm"], "MLM" if there else None)


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
"""The held-out scores of every number that was tried."""

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
