"""The diagnostics, judged on the benchmark: the first choice of ``worth.compare``, and what
``premise.lead`` decides.

The splits are those of map-tables, so that what each method then did is known.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import worth
from imm_lib.experiments import Experiment
from imm_lib.experiments.clinic import methods, runs, settings
from imm_lib.experiments.clinic.protocol import DECAYS, METHODS
from imm_lib.experiments.clinic.reading import tasks
from imm_lib.experiments.clinic.suggested import LOOKED_AT, last_layer
from imm_lib.experiments.clinic.training import Settings
from imm_lib.premise import lead
from imm_lib.uses import USES

PAIRS = 200
"""Restricted pairs that are looked at; those that the restricted model was fitted on, which has a
few parameters for some hundred of them.
"""


def _judged(unit: dict, config: dict, device: torch.device) -> dict:
    """By split: the expected risk of each use, the first choice, and the lead's decision."""
    _, problems, _ = runs.drawn(unit, config)
    model, train, test, seeds = runs.table_problem(unit, config)
    count, n = len(seeds), train.label.shape[1]
    none = torch.zeros(count, len(DECAYS))
    wide = Settings(torch.tensor(DECAYS).expand(count, -1), none, none)
    fitted = methods.fitter(model, train, test, seeds)("none", wide)
    plain = methods.choose(model.kind, fitted, wide, train.label)
    index = (wide.decay == plain.settings.decay).long().argmax(1)
    rows = torch.arange(count)
    weights = [w[rows, index] for w in fitted.weights]
    size = min(n, LOOKED_AT // (5 * model.outputs))
    found: dict[str, list] = {"first": [], "share": [], "sure": [], "decision": [], "slope": []}
    left_out = model.kind.loss(plain.held_out, train.label).mean(1)
    alone = model.kind.loss(train.target.log(), train.label).mean(1)
    # of plain training on the folds that it has not seen, and of the target on the same cases
    found["plain"] = [round(x, 5) for x in left_out.tolist()]
    found["target"] = [round(x, 5) for x in alone.tolist()]
    for run, problem in enumerate(problems):
        last, query, contexts = last_layer(model, train, weights, run, size)
        short = train.short[run, :size].double()
        pairs = problem.side.short[:PAIRS].double(), problem.side.label[:PAIRS]

        def target(asked: Tensor, problem=problem) -> Tensor:
            return problem.restricted(asked.float()).double()

        own = plain.settings.decay[run].item()
        decay = torch.cat(
            [torch.full((w.numel(),), own if i == 0 else 0.0) for i, w in enumerate(last)]
        )
        comparison = worth.compare(
            query, last, contexts, short, torch.arange(size), target, pairs, decay, n=n
        )
        ranked = comparison.expected(50, torch.Generator().manual_seed(0))
        ahead = lead(query, contexts, target, *pairs)
        found["first"].append(ranked[0].use)
        found["share"].append(ranked[0].share)
        found["sure"].append(round(ranked[0].first, 3))
        found["decision"].append(ahead.decision())
        found["slope"].append(round(ahead.slope / max(ahead.slope_error, 1e-12), 3))
    return found


def _units(config: dict, seed: int) -> list[dict]:
    units = runs.table_units(config, seed)
    return [unit for unit in units if not unit["task"].startswith("diabetes")]


def _table(result: dict) -> list[list[str]]:
    rows = [["task", *USES, "go", "open", "stop"]]
    for entry in result["units"]:
        numbers = entry["numbers"]
        firsts = [str(numbers["first"].count(use)) for use in USES]
        decisions = [str(numbers["decision"].count(word)) for word in ("go", "open", "stop")]
        rows.append([entry["unit"]["task"], *firsts, *decisions])
    return rows


class Judged(NamedTuple):
    """A way to choose a use, over all splits of all tasks."""

    name: str
    near: float  # share of splits whose choice is within a standard error of the task's best
    regret: float  # mean loss over the best use's, per cent of plain's


def rivals(judged: dict, tables: dict) -> list[Judged]:
    """Rules that choose a use, and one use for all, beside the best method of each task in
    hindsight.

    "by the target's loss" takes interpolation where the target is better on the training cases than
    plain training on those that it was not shown, and IMM at λ = 1 elsewhere. A use is within a
    standard error of the best where its mean loss less the best's is at most the standard error of
    that difference.
    """
    cells = tasks(tables)
    near: dict[str, list[float]] = {}
    regret: dict[str, list[float]] = {}
    for entry in judged["units"]:
        task, numbers = entry["unit"]["task"], entry["numbers"]
        losses = {use: cells[task][use] for use in METHODS}
        best = min(losses.values(), key=lambda values: values.mean().item())
        scale = losses["plain"].mean().item() / 100
        close, over = {}, {}
        for use, values in losses.items():
            apart = values - best
            error = (apart.std() / len(apart) ** 0.5).item()
            close[use] = float(apart.mean().item() <= error)
            over[use] = apart.mean().item() / scale
        better = [t < p for t, p in zip(numbers["target"], numbers["plain"], strict=True)]
        rules = {
            "worth.compare": numbers["first"],
            "by the target's loss": ["interpolation" if b else "IMM, λ = 1" for b in better],
        }
        plans = {use: [use] for use in METHODS} | rules
        for name, picks in plans.items():
            near.setdefault(name, []).append(sum(close[p] for p in picks) / len(picks))
            regret.setdefault(name, []).append(sum(over[p] for p in picks) / len(picks))
    count = len(judged["units"])
    return [Judged(name, sum(near[name]) / count, sum(regret[name]) / count) for name in near]


class Decided(NamedTuple):
    """The splits in which ``premise.lead`` said a word."""

    word: str
    splits: int
    helped: float  # share in which IMM at λ = 1 was better than plain
    change: float  # mean of its loss less plain's, per cent of plain's


def decided(judged: dict, tables: dict) -> list[Decided]:
    """What IMM at λ = 1 then did, by the lead's decision."""
    cells = tasks(tables)
    changes: dict[str, list[float]] = {"go": [], "open": [], "stop": []}
    for entry in judged["units"]:
        by_method = cells[entry["unit"]["task"]]
        apart = by_method["IMM, λ = 1"] - by_method["plain"]
        relative = (100 * apart / by_method["plain"].mean()).tolist()
        for word, change in zip(entry["numbers"]["decision"], relative, strict=True):
            changes[word].append(change)
    return [
        Decided(
            word, len(values), sum(v < 0 for v in values) / len(values), sum(values) / len(values)
        )
        for word, values in changes.items()
        if values
    ]


EXPERIMENTS = [
    Experiment(
        name="map-judged",
        scales={
            "full": settings.TABLES,
            "ci": {
                **settings.TABLES,
                "steps": 5,
                "repetitions": 2,
                "block": 2,
                "cases": [["wine", "linear", [20]]],
            },
        },
        units=_units,
        run=_judged,
        table=_table,
        check=settings.check_tables,
        devices=("cpu",),
    )
]
