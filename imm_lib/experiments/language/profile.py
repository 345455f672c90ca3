"""How long the paper's language models take on this machine: seconds of an epoch by arm, and in
what it pays to compute.

The first units ask for the fastest way that holds the CPU's loss to 1 %; the others measure a step
of each kind of arm in that way, so that what fits into the minutes that are left can be told.
"""

import itertools
import statistics
from functools import partial

import torch

from imm_lib.experiments import Experiment, options
from imm_lib.experiments.language import arms, runs
from imm_lib.experiments.language.measures import label_log_probs
from imm_lib.experiments.language.speed import steps
from imm_lib.experiments.language.training import WAYS, Run, way
from imm_lib.experiments.table import Table
from imm_lib.experiments.timing import compare

TOLERANCE = 0.01
"""Relative, of the loss of the first steps without dropout, against the CPU's in float32."""


def _begin(config: dict, arm: str, device: torch.device, **changes: object) -> Run:
    """An arm's run, its weights drawn, at the first step."""
    prepared = runs.prepared(config, arm, config["lines"], 0, device, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of weights on the CPU, the same on every device
        return Run(*prepared)


def _way(unit: dict, config: dict, device: torch.device) -> dict:
    """Seconds of the plain step in one way, and its first losses without dropout, to be compared
    with the CPU's.
    """
    arm = next(iter(config["arms"]))
    with way(unit["way"]):
        try:
            first = steps(_begin(config, arm, device, dropout=0.0))
            loss = statistics.mean(itertools.islice(first, config["compared"]))
            step = partial(next, steps(_begin(config, arm, device)))
            seconds = compare({"step": step}, config["repeats"], device)
        except Exception as error:  # no compiler, say: then it is not taken
            return {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"step_s": seconds["step"], "loss": loss}


def _arm(unit: dict, config: dict, device: torch.device) -> dict:
    """Seconds of an arm's epoch, from those of a step, of its pass over the text, and
    validation.
    """
    run = _begin(config, unit["arm"], device)
    passes = {
        "sweep_s": lambda: run.term.begin_epoch(run.model, run.train, True),
        "valid_s": lambda: label_log_probs(run.model, run.valid),
    }
    times = compare(passes, 1, device)
    times |= compare({"step_s": partial(next, steps(run))}, config["repeats"], device)
    blocks = len(run.train)
    epoch = blocks * times["step_s"] + times["sweep_s"] + times["valid_s"]
    return {**times, "blocks": blocks, "epoch_s": epoch}


def best(units: list[dict], loss: float) -> str:
    """The fastest way of those that hold a loss, the CPU's; float32 where none does."""
    held = {
        entry["unit"]["way"]: entry["numbers"]["step_s"]
        for entry in units
        if "loss" in entry["numbers"] and abs(entry["numbers"]["loss"] - loss) <= TOLERANCE * loss
    }
    return min(held, key=held.__getitem__) if held else "float32"


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    return _way(unit, config, device) if "way" in unit else _arm(unit, config, device)


def _check(config: dict) -> None:
    options.each("ways", config["ways"], WAYS)
    runs.check({**config, "sizes": [[config["lines"], 1]]})


_ARMS = {
    "baseline": {},
    "moving average, λ = 1": {"term": "moving average", "lam": 1.0},
    "cached states, λ = 0.2": {"term": "sampled", "lam": 0.2},
}
_FULL = {
    **{"corpus": "ptb", "lines": runs.LINES, "held_out": None, "settings": arms.PAPER},
    **{"arms": _ARMS, "ways": list(WAYS), "compared": 3, "repeats": 30},
}
_QUICK = {
    **{"lines": 100, "held_out": 100, "settings": {"width": 16, "dropout": 0.2}},
    **{"ways": ["float32", "bfloat16"], "repeats": 2},
}

EXPERIMENTS = [
    Experiment(
        name="language-profile",
        scales={"full": _FULL, "ci": {**_FULL, **_QUICK}},
        units=lambda config, seed: [
            *({"way": way} for way in config["ways"]),
            *({"arm": arm} for arm in config["arms"]),
        ],
        run=_run,
        table=Table(
            "",
            {
                "way or arm": "{unit}",
                "step, ms": lambda row: f"{1000 * row.get('step_s', float('nan')):.2f}",
                "loss": lambda row: f"{row['loss']:.4f}" if "loss" in row else "",
                "epoch, s": lambda row: f"{row['epoch_s']:.1f}" if "epoch_s" in row else "",
                "failed": lambda row: row.get("failed", ""),
            },
        ),
        gpu=True,
        check=_check,
    )
]
