"""What the paper prints about logistic regression, and the planes that were tried to reproduce
it.
"""

import math
from itertools import product
from math import gcd
from typing import NamedTuple

LAM = 1.5
"""λ of Table 4."""


class Cell(NamedTuple):
    """A mean accuracy in per cent with the upper and lower bars as printed, 10th and 90th
    percentiles of 300 runs.
    """

    mean: float
    plus: float
    minus: float


TABLE_4 = {
    5: {
        "baseline": Cell(73.14, 16.17, 14.53),
        "noising": Cell(76.85, 18.58, 13.15),
        "IMM exact": Cell(79.96, 14.99, 12.38),
    },
    10: {
        "baseline": Cell(84.17, 13.51, 10.86),
        "noising": Cell(84.37, 7.40, 7.63),
        "IMM exact": Cell(88.65, 9.65, 7.68),
    },
    15: {
        "baseline": Cell(89.86, 8.86, 6.80),
        "noising": Cell(86.17, 6.17, 5.53),
        "IMM exact": Cell(92.52, 6.19, 4.81),
    },
    20: {
        "baseline": Cell(92.35, 7.35, 5.32),
        "noising": Cell(86.99, 5.69, 5.37),
        "IMM exact": Cell(94.30, 4.63, 3.70),
    },
    30: {
        "baseline": Cell(94.94, 3.97, 3.43),
        "noising": Cell(88.68, 4.35, 4.32),
        "IMM exact": Cell(95.69, 3.39, 2.64),
    },
    40: {
        "baseline": Cell(96.33, 3.00, 2.33),
        "noising": Cell(89.70, 3.73, 3.97),
        "IMM exact": Cell(96.59, 2.59, 2.08),
    },
    50: {
        "baseline": Cell(97.14, 2.47, 2.20),
        "noising": Cell(90.78, 3.78, 3.55),
        "IMM exact": Cell(97.34, 2.34, 1.99),
    },
}
"""Table 4 by data size."""

GAP = {5: "3.11", 10: "4.28", 15: "6.35", 20: "7.30", 30: "7.01", 40: "6.89", 50: "6.56"}
"""Its last column, IMM less noising, as printed."""

RUNS = 300
"""Monte-Carlo runs behind each printed mean."""


BAR = (0.1 * 0.9 / 0.17550**2 - 1) ** 0.5
"""Standard error of a bar, the distance of a 10th or 90th percentile from the mean, in standard
errors of the mean.

For a normal sample: the variance of the percentile, p (1 - p) / f^2 with the density f there, less
    that of the mean.
"""


def standard_error(cell: Cell, runs: int = RUNS) -> float:
    """A standard error of a mean, in points, from the distance of its two percentiles as if it were
    normal.
    """
    return (cell.plus + cell.minus) / 2.5631 / runs**0.5


def search_planes() -> list[list[int]]:
    """Normals of planes through the centre: directions of whole coefficients up to 4."""
    triples = product(range(1, 5), range(5), range(5))
    # swapping x2 and x3, or turning a coordinate around, changes nothing but names
    kept = {(a, *sorted((b, c))) for a, b, c in triples if b or c}
    return [list(t) for t in sorted(kept) if gcd(*t) == 1]


class Fit(NamedTuple):
    """How one setting of the search compares with Table 4."""

    normal: list[int]
    labels: str  # of noising: "soft", or "hard" and redrawn at every step
    steps: int
    chi2: float  # over the printed means of all three columns, in the standard errors of both
    near: int  # means within 2 standard errors or 0.7 points
    rise: float  # of noising from n = 20 to the largest size, in points


def fits(result: dict) -> list[Fit]:
    """The settings of a result of ``logistic-columns``, the nearest to Table 4 first."""
    found = []
    sizes = result["config"]["sizes"]
    for entry in result["units"]:
        columns = entry["numbers"]["columns"]
        for steps in result["config"]["steps"]:
            for labels in ("soft", "hard"):
                noising = columns[f"noising, {labels} labels, {steps} steps"]
                trained = {
                    "baseline": columns[f"baseline, {steps} steps"],
                    "noising": noising,
                    "IMM exact": columns[f"IMM exact, {steps} steps"],
                }
                errors, near = [], 0
                for method, row in trained.items():
                    for n, ours in zip(sizes, row, strict=True):
                        printed = TABLE_4[n][method]
                        apart = ours["mean"] - printed.mean
                        both = (ours["se"] ** 2 + standard_error(printed) ** 2) ** 0.5
                        errors.append(apart / both)
                        near += abs(apart) <= max(2 * both, 0.7)
                by_size = {n: row["mean"] for n, row in zip(sizes, noising, strict=True)}
                rise = by_size[max(by_size)] - by_size[20] if 20 in by_size else math.nan
                chi2 = sum(error**2 for error in errors)
                normal = entry["unit"]["normal"]
                found.append(Fit(normal, labels, steps, chi2, near, rise))
    return sorted(found, key=lambda fit: fit.chi2)


def against(result: dict) -> list[dict]:
    """Table 4 beside a result of ``logistic-fixed``: one row per plane, data size and method.

    ``errors`` is ours minus the paper's in standard errors of both; ``near`` says whether it is at
    most 2 of them or 0.7 points; ``cell`` is our mean with its bars.
    """
    rows = []
    for entry in result["units"]:
        for method, printed in TABLE_4[entry["unit"]["n"]].items():
            ours = entry["numbers"]["accuracy"][method]
            difference = ours["mean"] - printed.mean
            errors = difference / (ours["se"] ** 2 + standard_error(printed) ** 2) ** 0.5
            row = {
                "normal": entry["unit"]["normal"],
                "n": entry["unit"]["n"],
                "method": method,
                "paper": printed.mean,
            }
            near = abs(errors) <= 2 or abs(difference) <= 0.7
            cell = Cell(ours["mean"], ours["p90"] - ours["mean"], ours["mean"] - ours["p10"])
            row |= {
                "ours": ours["mean"],
                "cell": cell,
                "difference": difference,
                "errors": errors,
                "near": near,
            }
            rows.append(row)
    return rows


def inside(row: dict) -> bool:
    """Whether a row of :func:`against` is inside, by the rule of the reproduction page: apart by no
    more than the 95 % interval of the difference and half a unit of the last printed digit.
    """
    error = abs(row["difference"] / row["errors"]) if row["errors"] else 0.0
    return abs(row["difference"]) <= 1.959964 * error + 0.005
