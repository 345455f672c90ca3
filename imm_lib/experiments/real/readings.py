"""What the stored comparisons on real tables say: gains, and what foretells harm."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib.results import mean_interval

SCORES = ("loss", "accuracy")


def cases(result: dict) -> dict[tuple, list[dict]]:
    """The runs of each case, by its (data, kind, n) and, if there is one, shift; in the order of
    the splits.
    """
    found: dict[tuple, list[dict]] = {}
    for entry in result["units"]:
        key = tuple(value for name, value in entry["unit"].items() if name != "seed")
        found.setdefault(key, []).append(entry["numbers"])
    return found


def chosen(runs: list[dict], family: str, score: str = "loss") -> Tensor:
    """(splits,) test scores of a method at the settings that are best in loss on the other half of
    the splits.

    Args:
        runs: of one case.
        family: "baseline", "interpolation", "reverse-KD", "IMM" or "target"; or one setting by its
        whole name.
        score: "loss" in nats or "accuracy".

    Raises:
        ValueError: fewer than two splits, or an unknown family.
    """
    names = [name for name in runs[0]["methods"] if family in (name, name.split(",")[0])]
    if not names or len(runs) < 2:
        raise ValueError(
            f"family must be a method of at least two runs, got {family!r} and {len(runs)} runs"
        )
    read = {
        s: torch.tensor([[r["methods"][n][s] for n in names] for r in runs], dtype=torch.float64)
        for s in SCORES
    }
    found = torch.empty(len(runs), dtype=torch.float64)
    for half in range(2):
        own, other = slice(half, None, 2), slice(1 - half, None, 2)
        found[own] = read[score][own, read["loss"][other].mean(0).argmin()]
    return found


def change(runs: list[dict], family: str, leave_out: str | None = None) -> Tensor:
    """(splits,) test loss less the baseline's, in nats; settings are :func:`chosen`.

    Args:
        runs: of one case.
        family: of :func:`chosen`.
        leave_out: how the names of methods end that are not to be chosen from.
    """
    kept = [
        {
            "methods": {
                m: v
                for m, v in run["methods"].items()
                if leave_out is None or not m.endswith(leave_out)
            }
        }
        for run in runs
    ]
    return chosen(kept, family) - chosen(kept, "baseline")


def gain(runs: list[dict], family: str, leave_out: str | None = None) -> tuple[float, float]:
    """The mean over the splits of :func:`change`, and half of its 95 % interval."""
    return mean_interval(change(runs, family, leave_out))


class Shifted(NamedTuple):
    """Runs of one data set by the share of side labels that were moved: M shares, R splits."""

    share: Tensor  # (M, 1)
    z: Tensor  # (M, R) how much the training labels surprise the target
    # (M, R) of the target over the induced model on left-out training pairs, in standard errors
    lead: Tensor
    change: Tensor  # (M, R) of the test loss by IMM, in nats


def by_shift(result: dict) -> dict[str, Shifted]:
    """The runs of a result with shifts, by data set."""
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    for (data, _, _, share), runs in cases(result).items():
        z, ahead = (
            torch.tensor([run[k] for run in runs], dtype=torch.float64)
            for k in ("surprise", "lead")
        )
        found.setdefault(data, []).append((torch.tensor([share]), z, ahead, change(runs, "IMM")))
    return {
        data: Shifted(*map(torch.stack, zip(*rows, strict=True))) for data, rows in found.items()
    }


def harm(measure: Tensor, change: Tensor, edges: list[float]) -> Tensor:
    """What a measurement says of the change of the loss.

    Args:
        measure: (M, R).
        change: (M, R), in nats.
        edges: (B + 1,) of its bins, each without its lower end.

    Returns:
        (B, 4) how many runs are in each bin, the share that was harmed, their mean change, and the
        worst.
    """
    rows = [change[(measure > low) & (measure <= high)] for low, high in pairwise(edges)]
    return torch.stack(
        [
            torch.stack([torch.tensor(len(r)).to(r), (r > 0).to(r).mean(), r.mean(), r.max()])
            for r in rows
        ]
    )


def mean(runs: list[dict], method: str, score: str = "loss") -> float:
    """Mean test score of one method at one setting over the splits."""
    return sum(run["methods"][method][score] for run in runs) / len(runs)
