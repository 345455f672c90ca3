"""What the paper prints about logistic regression, and the planes that were tried to reproduce
it.
"""

import math
from itertools import product, starmap
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


_PRINTED = {
    5: ((73.14, 16.17, 14.53), (76.85, 18.58, 13.15), (79.96, 14.99, 12.38)),
    10: ((84.17, 13.51, 10.86), (84.37, 7.40, 7.63), (88.65, 9.65, 7.68)),
    15: ((89.86, 8.86, 6.80), (86.17, 6.17, 5.53), (92.52, 6.19, 4.81)),
    20: ((92.35, 7.35, 5.32), (86.99, 5.69, 5.37), (94.30, 4.63, 3.70)),
    30: ((94.94, 3.97, 3.43), (88.68, 4.35, 4.32), (95.69, 3.39, 2.64)),
    40: ((96.33, 3.00, 2.33), (89.70, 3.73, 3.97), (96.59, 2.59, 2.08)),
    50: ((97.14, 2.47, 2.20), (90.78, 3.78, 3.55), (97.34, 2.34, 1.99)),
}
TABLE_4 = {
    n: dict(zip(("baseline", "noising", "IMM exact"), starmap(Cell, row), strict=True))
    for n, row in _PRINTED.items()
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


def _apart(ours: dict[str, float], printed: Cell) -> tuple[float, float]:
    """Our mean less a printed one, in points and in standard errors of both."""
    difference = ours["mean"] - printed.mean
    both = (ours["se"] ** 2 + standard_error(printed) ** 2) ** 0.5
    return difference, difference / both


def fits(result: dict) -> list[Fit]:
    """The settings of a result of ``logistic-columns``, the nearest to Table 4 first."""
    sizes, lengths = result["config"]["sizes"], result["config"]["steps"]
    return sorted(
        (
            _fit(entry, sizes, steps, labels)
            for entry in result["units"]
            for steps in lengths
            for labels in ("soft", "hard")
        ),
        key=lambda fit: fit.chi2,
    )


def _fit(entry: dict, sizes: list[int], steps: int, labels: str) -> Fit:
    columns = {
        method: entry["numbers"]["columns"][f"{method}{which}, {steps} steps"]
        for method, which in (
            ("baseline", ""),
            ("noising", f", {labels} labels"),
            ("IMM exact", ""),
        )
    }
    cells = [
        _apart(ours, TABLE_4[n][method])
        for method, row in columns.items()
        for n, ours in zip(sizes, row, strict=True)
    ]
    noising = {n: row["mean"] for n, row in zip(sizes, columns["noising"], strict=True)}
    return Fit(
        normal=entry["unit"]["normal"],
        labels=labels,
        steps=steps,
        chi2=sum(errors**2 for _, errors in cells),
        near=sum(abs(errors) <= 2 or abs(difference) <= 0.7 for difference, errors in cells),
        rise=noising[max(noising)] - noising.get(20, math.nan),
    )


def against(result: dict) -> list[dict]:
    """Table 4 beside a result of ``logistic-fixed``: one row per plane, data size and method.

    ``errors`` is ours minus the paper's in standard errors of both; ``cell`` is our mean with its
    bars.
    """
    rows = []
    for entry in result["units"]:
        unit = {name: entry["unit"][name] for name in ("normal", "n")}
        for method, printed in TABLE_4[unit["n"]].items():
            ours = entry["numbers"]["accuracy"][method]
            difference, errors = _apart(ours, printed)
            mean = ours["mean"]
            found = {"paper": printed.mean, "ours": mean, "difference": difference}
            cell = Cell(mean, ours["p90"] - mean, mean - ours["p10"])
            rows.append({**unit, "method": method, **found, "errors": errors, "cell": cell})
    return rows


def inside(row: dict) -> bool:
    """Whether a row of :func:`against` is inside, by the rule of the reproduction page: apart by no
    more than the 95 % interval of the difference and half a unit of the last printed digit.
    """
    error = abs(row["difference"] / row["errors"]) if row["errors"] else 0.0
    return abs(row["difference"]) <= 1.959964 * error + 0.005
