"""What is read off stored language runs: means over seeds, and differences from the baseline of the
same text.
"""

import math

import torch

from imm_lib.results import mean_interval

FIELDS = ("valid", "test", "mixture", "epoch_cpu_s")


def _runs(*stored: dict) -> dict[tuple[str, int], dict[int, torch.Tensor]]:
    """By arm and training lines, and by seed: the FIELDS of a run that did not diverge."""
    runs: dict[tuple[str, int], dict[int, torch.Tensor]] = {}
    for unit, numbers in ((e["unit"], e["numbers"]) for result in stored for e in result["units"]):
        if "diverged" not in numbers:
            seconds = [epoch["cpu_s"] for epoch in numbers["epochs"]]
            values = numbers["valid"], numbers["test"], numbers["mixture"]["test"]
            found = torch.tensor([*values, sum(seconds) / len(seconds)], dtype=torch.float64)
            runs.setdefault((unit["arm"], unit["lines"]), {})[unit["seed"]] = found
    return runs


def _pairs(*stored: dict) -> dict[tuple[str, int], tuple[torch.Tensor, ...]]:
    """By arm and training lines: (seeds, FIELDS) of it and of the baseline on the same text."""
    runs, found = _runs(*stored), {}
    for (arm, lines), own in runs.items():
        base = runs.get(("baseline", lines), {})
        if seeds := sorted(own.keys() & base):
            values = torch.stack([torch.stack([own[s], base[s]]) for s in seeds])
            found[arm, lines] = values.unbind(1)
    return found


def summary(result: dict, lines: int | None = None) -> dict[str, dict[str, float]]:
    """By arm, of the seeds at which it and the baseline have finished: means, and differences from
    the baseline.

    Args:
        result: of an experiment of training runs that has an arm "baseline".
        lines: training lines; those of the result's first size by default.

    Returns:
        arm -> means of FIELDS (perplexities; "mixture" with the bigram at test time; CPU seconds);
        "difference" and "half_width" of the test perplexity (95 %), NaN with fewer than two seeds;
        "seeds", how many; and "cost", CPU seconds of an epoch over the baseline's. Arms without
        such a seed are left out.
    """
    lines, pairs, found = lines or result["config"]["sizes"][0][0], _pairs(result), {}
    for arm in result["config"]["arms"]:
        if (arm, lines) in pairs:
            values, base = pairs[arm, lines]
            less = values[:, 1] - base[:, 1]
            gain = mean_interval(less) if len(less) > 1 else (math.nan, math.nan)
            row = dict(zip(FIELDS, values.mean(0).tolist(), strict=True))
            row |= {"difference": gain[0], "half_width": gain[1], "seeds": len(less)}
            found[arm] = {**row, "cost": (values[:, -1] / base[:, -1]).mean().item()}
    return found


def changes(*stored: dict) -> dict[tuple[str, int], torch.Tensor]:
    """By arm and training lines: (seeds, 2) changes in per cent of the baseline's perplexity on the
    same text, of the test perplexity and of that of the mixture with the bigram. Seeds without a
    baseline and runs that diverged are left out.
    """
    pairs = _pairs(*stored).items()
    return {case: 100 * (own[:, 1:3] / base[:, 1:3] - 1) for case, (own, base) in pairs}


def style(arm: str) -> dict:
    """The book's colour, marker and line for an arm, as keywords of ``plot``; raises ValueError for
    another name.
    """
    from imm_lib.plotting import METHOD_STYLE

    names = {
        "baseline": "baseline",
        "KN noising": "noising",
        "reverse-KD": "reverse-KD",
        "moving average": "IMM moving average",
        "serialized": "IMM serialized",
        "cached": "IMM sampled",
    }
    for beginning, method in names.items():
        if arm.startswith(beginning):
            return METHOD_STYLE[method]._asdict()
    raise ValueError(f"arm must begin with one of {', '.join(names)}, got {arm!r}")
