"""What a stored result says: means, changes paired run by run, and a table of them.

>>> loss = lambda n, seed: {"plain": 1 / n, "IMM": 0.8 / n + seed / 1e4}
>>> cases = [{"n": n, "seed": seed} for n in (20, 80) for seed in range(4)]
>>> result = {"units": [{"unit": case, "numbers": {"loss": loss(**case)}} for case in cases]}
>>> found = show(result, {"loss": "value"}, where="loss/{method}", against="plain")
n   plain: loss  IMM less plain
20  0.05000      -0.00985 ± 0.00021
80  0.01250      -0.00235 ± 0.00021
4 runs in each, paired; ± is half of a 95 % interval
>>> assert found[20, "IMM", "loss"].change.high < 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from imm_lib import results
from imm_lib.experiments.options import one_of
from imm_lib.experiments.table import Row, down, entries, fitted, rows

__all__ = ["Reading", "Spread", "lacking", "listed", "paired", "rows", "show", "spread", "summary"]


class Spread(NamedTuple):
    """The mean of repeated runs and its 95 % interval by Student's t; of one run only the mean."""

    mean: float
    half: float  # of the interval's width; NaN for one run
    runs: int

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.half


Column = str | Callable[[Row], float | Spread | None]


class Reading(NamedTuple):
    """A number of one case, and how it differs from the case that it is held against."""

    value: Spread
    change: Spread | None = None  # None where no run of the two is paired


def spread(values: Iterable[float]) -> Spread:
    """The mean and the interval of (R,) numbers; raises ValueError for none."""
    found = [float(value) for value in values]
    if len(found) == 1:
        return Spread(found[0], math.nan, 1)
    return Spread(*results.mean_interval(found), len(found))


def summary(mean: float, error: float, runs: int) -> Spread:
    """The mean and the interval where a row stores the mean and the standard error of its runs, for
    a column of :func:`paired`; raises ValueError for fewer than two runs.
    """
    from scipy.stats import t as student

    if runs < 2:
        raise ValueError(f"runs must be at least 2, got {runs}")
    return Spread(mean, float(student.ppf(0.975, runs - 1)) * error, runs)


def paired(
    result: dict,
    column: Column,
    by: Sequence[str] = (),
    against: object = None,
    where: str = "",
) -> dict[tuple, Reading]:
    """A number's mean in every case, and its change from the case that it is held against.

    Args:
        result: a stored result.
        column: a field of the rows, or a function of a row: its number, its :func:`summary`, or
            None. Rows that lack it, those of a diverged run say, are left out.
        by: the fields that tell cases apart; by default all but "seed". What else tells rows apart
            names the run, and runs are paired by it.
        against: a value of the last of ``by``, the method say; the rest of the case stays the same.
        where: the rows lie, see :func:`~imm_lib.experiments.table.rows`.

    Returns:
        by case, in the order of the rows.

    Raises:
        KeyError: a unit has no such path.
        ValueError: no row has the column or a field of ``by``, there is no such case to hold
            others against, two rows are of one case and run, or a case has several summaries.
    """
    found = list(entries(result, where))
    if not found:
        raise ValueError("result must have a unit, got none")
    by = by or _axes(found[0].axes)
    runs: dict[tuple, dict[str, float | Spread]] = {}
    for axes, numbers, _ in found:
        if missing := [name for name in by if name not in axes]:
            raise ValueError(f"by must be of {', '.join(axes)}, got {missing[0]!r}")
        row = axes | numbers
        value = column(row) if callable(column) else row.get(column)
        if value is None:
            continue
        run = repr([axes[name] for name in axes if name not in by])
        own = runs.setdefault(tuple(axes[name] for name in by), {})
        if run in own:
            raise ValueError(f"rows must differ in {', '.join(axes)}, got two alike")
        own[run] = value
    if not runs:
        known = [name for name in found[0].numbers if "/" not in name] or found[0].numbers
        raise ValueError(
            f"column must be of {', '.join(known)}, got {column!r}{_deeper(result, column, where)}"
        )
    last = dict.fromkeys(case[-1] for case in runs)
    if against is not None:
        one_of("against", against, last)
    readings = {}
    for case, own in runs.items():
        readings[case] = _reading(own, runs.get((*case[:-1], against), {}))
    return readings


def lacking(result: dict, column: str, where: str = "") -> str:
    """How many rows :func:`paired` leaves out as they lack a column, in words; nothing for none."""
    found = list(entries(result, where))
    without = sum((axes | numbers).get(column) is None for axes, numbers, _ in found)
    if not without:
        return ""
    return f"{without} of {len(found)} rows have no {column}{_deeper(result, column, where)}"


def _deeper(result: dict, column: Column, where: str) -> str:
    """Where rows that have the column lie, if it is elsewhere."""
    names = dict.fromkeys(name for entry in entries(result, "") for name in entry.numbers)
    paths = [name.split("/")[:-1] for name in names if name.endswith(f"/{column}")]
    above = ["/".join(path[:-1]) for path in paths]
    most = max(above, key=above.count, default="")
    if not paths or (where and where.rpartition("/")[0] == most != ""):
        return ""
    inner = "{case}" if above.count(most) > 1 else paths[above.index(most)][-1]
    return "; other rows lie under where, such as " + "/".join(filter(None, [most, inner]))


def _reading(own: Mapping[str, float | Spread], other: Mapping[str, float | Spread]) -> Reading:
    """The runs of a case, less those of another; a summary's runs are not at hand to be paired."""
    summaries = [value for value in own.values() if isinstance(value, Spread)]
    if len(summaries) > 1:
        raise ValueError(f"by must tell summaries apart, got {len(summaries)} in one case")
    if summaries:
        return Reading(summaries[0])
    values = {run: value for run, value in own.items() if not isinstance(value, Spread)}
    against = {run: value for run, value in other.items() if not isinstance(value, Spread)}
    changes = [value - against[run] for run, value in values.items() if run in against]
    return Reading(spread(values.values()), spread(changes) if changes else None)


def _axes(axes: Row) -> list[str]:
    return [name for name in axes if name != "seed"]


def show(
    result: dict,
    columns: Sequence[str] | Mapping[str, Column],
    by: Sequence[str] = (),
    against: object = None,
    where: str = "",
    among: Sequence[object] = (),
    digits: int | None = None,
) -> dict[tuple, Reading]:
    """Print a table of means, or of changes from a case, with their 95 % intervals.

    The last of ``by`` stands across where there is one column and room for it, else down; columns
    that have no room beside each other become tables of their own.

    Args:
        result, by, against, where: of :func:`paired`.
        columns: of :func:`paired`, one or several; a dict's keys are their headings.
        among: the values of the last of ``by`` that are shown; by default all.
        digits: after the point; by default two of the interval.

    Returns:
        the numbers shown, by case and heading: ``found[20, "IMM", "loss"].change.mean``.

    Raises:
        KeyError, ValueError: as :func:`paired`.
    """
    found, by = _read(result, columns, by, against, where, among)
    lines = fitted(found, by, against, digits)
    runs = [spread.runs for reading in found.values() for spread in reading if spread]
    many = f"{min(runs)} to {max(runs)} runs" if min(runs) < max(runs) else f"{runs[0]} runs"
    note = "1 run" if max(runs) == 1 else many
    note += " in each" + ", paired" * (against is not None)
    print("\n".join([*lines, note + "; ± is half of a 95 % interval" * (max(runs) > 1)]))
    return found


def listed(
    result: dict,
    columns: Sequence[str] | Mapping[str, Column],
    by: Sequence[str] = (),
    against: object = None,
    where: str = "",
    among: Sequence[object] = (),
) -> list[list[str]]:
    """The table of :func:`show` with all cases down, as rows of text: what an experiment's
    ``table`` is made of.
    """
    found, by = _read(result, columns, by, against, where, among)
    return down(found, by, against)


def _read(
    result: dict,
    columns: Sequence[str] | Mapping[str, Column],
    by: Sequence[str],
    against: object,
    where: str,
    among: Sequence[object],
) -> tuple[dict[tuple, Reading], Sequence[str]]:
    named = columns if isinstance(columns, Mapping) else {column: column for column in columns}
    by = by or next((_axes(entry.axes) for entry in entries(result, where)), ())
    found = {
        (*case, heading): reading
        for heading, column in named.items()
        for case, reading in paired(result, column, by, against, where).items()
        if not among or case[-1] in among
    }
    return found, by
