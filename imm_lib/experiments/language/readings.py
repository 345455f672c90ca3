"""What is read off stored language runs: means over seeds, and paired differences from the
baseline.
"""

import math

import torch

from imm_lib.results import mean_interval

FIELDS = ("valid", "test", "mixture", "induced", "epochs", "cpu_s", "epoch_cpu_s")


def _fields(numbers: dict) -> torch.Tensor:
    seconds = [epoch["cpu_s"] for epoch in numbers["epochs"]]
    induced = numbers["induced"]["test"]["safe"]
    values = (
        numbers["valid"],
        numbers["test"],
        numbers["mixture"]["test"],
        induced,
        len(seconds),
        sum(seconds),
    )
    return torch.tensor([*values, sum(seconds) / len(seconds)], dtype=torch.float64)


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
    lines = lines or result["config"]["sizes"][0][0]
    units = [e for e in result["units"] if e["unit"]["lines"] == lines]
    runs = {(e["unit"]["arm"], e["unit"]["seed"]): e["numbers"] for e in units}
    found = {}
    for arm in result["config"]["arms"]:
        seeds = [
            s
            for a, s in runs
            if a == arm and "test" in runs[a, s] and "test" in runs.get(("baseline", s), {})
        ]
        if not seeds:
            continue
        values, base = (
            torch.stack([_fields(runs[a, s]) for s in seeds]) for a in (arm, "baseline")
        )
        row = dict(zip(FIELDS, values.mean(0).tolist(), strict=True))
        gain = mean_interval(values[:, 1] - base[:, 1]) if len(seeds) > 1 else (math.nan, math.nan)
        row |= {"difference": gain[0], "half_width": gain[1], "seeds": len(seeds)}
        row["cost"] = (values[:, -1] / base[:, -1]).mean().item()
        found[arm] = row
    return found


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


def changes(*stored: dict) -> dict[tuple[str, int], torch.Tensor]:
    """By arm and training lines: (seeds, 2) changes in per cent of the baseline's perplexity on the
    same text.

    The columns are the test perplexity, and that of the mixture with the bigram. Seeds without a
    baseline and runs that diverged are left out.

    Args:
        stored: results of experiments of training runs.
    """
    runs: dict[tuple[str, int], dict[int, torch.Tensor]] = {}
    for entry in (entry for result in stored for entry in result["units"]):
        key = entry["unit"]["arm"], entry["unit"]["lines"]
        if "diverged" not in entry["numbers"]:
            runs.setdefault(key, {})[entry["unit"]["seed"]] = _fields(entry["numbers"])[[1, 2]]
    return {
        (arm, lines): torch.stack(
            [100 * (own[seed] / base[seed] - 1) for seed in sorted(own.keys() & base)]
        )
        for (arm, lines), own in runs.items()
        if own.keys() & (base := runs.get(("baseline", lines), {}))
    }
