"""Rows of a stored result, and the tables of text that experiments declare of them.

*Where* the rows lie is a path into the numbers of a unit of work. A name in braces stands for every
key there, and becomes a field of the row:

>>> numbers = {"rules": {"none": {"excess": 0.31}, "plug-in": {"excess": 0.24}}, "best": 0.2}
>>> result = {"units": [{"unit": {"n": 25, "seed": 0}, "numbers": numbers}]}
>>> rows(result, "rules/{rule}")[1]
{'n': 25, 'seed': 0, 'rule': 'plug-in', 'best': 0.2, 'excess': 0.24}
>>> table = Table("rules/{rule}", {"n": "{n}", "rule": "{rule}", "risk, nats": "{excess:.3f}"})
>>> print(*aligned(table(result)), sep="\\n")
n   rule     risk, nats
25  none     0.310
25  plug-in  0.240
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from imm_lib.experiments.reading import Reading, Spread

WIDTH = 78
"""Columns of text that :func:`fitted` keeps to where it can."""

Row = dict[str, Any]


class Entry(NamedTuple):
    """A row in its parts."""

    axes: Row  # what the unit is, and the names in braces
    numbers: Row
    unit: str  # the unit in words, but for its seed


def rows(result: dict, where: str = "") -> list[Row]:
    """One row for every unit and every key that a name in braces stands for.

    Args:
        result: a stored result.
        where: "rules/{rule}" gives a row per rule; "{n=sizes}" names the items of a list by the
            configuration's "sizes".

    Returns:
        dicts of the unit's fields, the names in braces, and the numbers at the path and beside it;
        those inside others are called "outer/inner".

    Raises:
        KeyError: a unit has no such path.
    """
    return [entry.axes | entry.numbers for entry in entries(result, where)]


def entries(result: dict, where: str) -> Iterator[Entry]:
    """The same in their parts."""
    parts, config = where.split("/") if where else [], result.get("config", {})
    for entry in result["units"]:
        words = ", ".join(f"{k} {v}" for k, v in entry["unit"].items() if k != "seed")
        for axes, numbers in _inside(entry["numbers"], parts, config):
            yield Entry(entry["unit"] | axes, numbers, words)


def _inside(value: Any, parts: list[str], config: dict) -> Iterator[tuple[Row, Row]]:
    if not parts:
        yield {}, _flat(value) if isinstance(value, dict) else {"value": value}
        return
    part, *rest = parts
    if part.startswith("{") and isinstance(value, dict | list | tuple):
        name, _, names = part[1:-1].partition("=")
        keys = value if isinstance(value, dict) else config[names] if names else range(len(value))
        inner = value.values() if isinstance(value, dict) else value
        for key, item in zip(keys, inner, strict=True):
            for axes, numbers in _inside(item, rest, config):
                yield {name: key} | axes, numbers
    elif isinstance(value, dict):
        beside = _flat({key: other for key, other in value.items() if key != part})
        for axes, numbers in _inside(value[part], rest, config):
            yield axes, beside | numbers
    else:
        raise KeyError(part)


def _flat(value: dict, at: str = "") -> Row:
    found: Row = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{at}{key}/") if isinstance(inner, dict) else {f"{at}{key}": inner}
    return found


@dataclass(frozen=True)
class Table:
    """A table of a stored result: called with one, it gives rows of text, the headings first.

    Attributes:
        where: of :func:`rows`.
        columns: heading -> a format of the row's fields, "{mean:.2f} ± {se:.2f}" say, or a function
            from the row to text. "{unit}" is the unit in words, but for its seed.
        across: heading and cell, both formats: rows that agree in ``columns`` become one.
        only: which rows; by default all of them.
    """

    where: str
    columns: Mapping[str, str | Callable[[Row], str]]
    across: tuple[str, str] | None = None
    only: Callable[[Row], bool] | None = None

    def __call__(self, result: dict) -> list[list[str]]:
        """The table; raises KeyError for a result without one of the fields."""
        lines: dict[tuple, tuple[list[str], dict[str, str]]] = {}
        for axes, numbers, unit in entries(result, self.where):
            row = {"unit": unit} | axes | numbers
            if self.only and not self.only(row):
                continue
            formats = self.columns.values()
            cells = [f.format_map(row) if isinstance(f, str) else f(row) for f in formats]
            key = tuple(cells) if self.across else (len(lines),)
            _, more = lines.setdefault(key, (cells, {}))
            if self.across:
                heading, cell = (part.format_map(row) for part in self.across)
                more[heading] = cell
        headings = list(dict.fromkeys(heading for _, more in lines.values() for heading in more))
        body = [
            [*cells, *(more.get(heading, "") for heading in headings)]
            for cells, more in lines.values()
        ]
        return [[*self.columns, *headings], *body]


def aligned(table: list[list[str]]) -> list[str]:
    """The rows of a table as lines of text."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    pairs = [zip(row, widths, strict=True) for row in table]
    return ["  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in pairs]


def fitted(
    found: Mapping[tuple, Reading], by: Sequence[str], against: object, digits: int | None
) -> list[str]:
    """Readings as lines of text: the last of ``by`` across if there is room for it, else down; the
    rest of the case above it, where that is still too wide.
    """
    headings = list(dict.fromkeys(heading for *_, heading in found))
    if len(headings) == 1 and len(by) > 1:
        lines = aligned(across(found, by, against, digits))
        if max(map(len, lines)) <= WIDTH:
            return lines
    table = down(found, by, against, digits)
    lines = aligned(table)
    if max(map(len, lines)) <= WIDTH:
        return lines
    if len(headings) == 1:
        return _grouped(table, len(by) - 1)
    parts = ({c: r for c, r in found.items() if c[-1] == heading} for heading in headings)
    tables = [fitted(part, by, against, digits) for part in parts]
    return [line for lines in tables for line in (*lines, "")][:-1]


def _grouped(table: list[list[str]], left: int) -> list[str]:
    """A table whose first columns stand in lines of their own."""
    first, *body = aligned([row[left:] for row in table])
    lines, said = [first], table[0][:left]
    for line, row in zip(body, table[1:], strict=True):
        if row[:left] != said:
            said = row[:left]
            pairs = zip(table[0], said, strict=False)
            lines.append(", ".join(f"{name} {value}" for name, value in pairs))
        lines.append(line)
    return lines


def down(
    found: Mapping[tuple, Reading],
    by: Sequence[str],
    against: object = None,
    digits: int | None = None,
) -> list[list[str]]:
    """Readings by (case, heading) as rows of text, one for each case."""
    places = _places(found, digits)
    table: dict[tuple, dict[str, str]] = {}
    for (*case, heading), (value, change) in found.items():
        cells = table.setdefault(tuple(case), {})
        cells[heading] = _text(value, places[heading])
        if against is not None:
            said = _text(change, places[heading], "+") if case[-1] != against else ""
            cells[f"{heading} less {against}"] = said
    return _filled(list(by), table)


def across(
    found: Mapping[tuple, Reading], by: Sequence[str], against: object, digits: int | None
) -> list[list[str]]:
    """Readings of one heading, a row for all cases that differ in the last of ``by`` only."""
    places = _places(found, digits)
    table: dict[tuple, dict[str, str]] = {}
    for (*case, last, heading), (value, change) in found.items():
        cells = table.setdefault(tuple(case), {})
        if against is None:
            cells[str(last)] = _text(value, places[heading])
        elif last == against:
            cells[f"{last}: {heading}"] = f"{value.mean:.{places[heading]}f}"
        else:
            cells[f"{last} less {against}"] = _text(change, places[heading], "+")
    return _filled(list(by[:-1]), table)


def _filled(names: list[str], table: dict[tuple, dict[str, str]]) -> list[list[str]]:
    headings = list(dict.fromkeys(heading for cells in table.values() for heading in cells))
    body = [
        [*map(str, case), *(cells.get(heading, "") for heading in headings)]
        for case, cells in table.items()
    ]
    return [[*names, *headings], *body]


def _text(spread: Spread | None, digits: int, sign: str = "") -> str:
    if spread is None:
        return ""
    half = "" if math.isnan(spread.half) else f" ± {spread.half:.{digits}f}"
    return f"{spread.mean:{sign}z.{digits}f}{half}"


def _places(found: Mapping[tuple, Reading], digits: int | None) -> dict[str, int]:
    """Digits after the point by heading; by default two of the median interval."""
    halves: dict[str, list[float]] = {}
    for (*_, heading), (value, change) in found.items():
        halves.setdefault(heading, []).append((change or value).half)
    if digits is not None:
        return dict.fromkeys(halves, digits)
    known = {heading: [half for half in own if half > 0] for heading, own in halves.items()}
    return {
        heading: max(0, 1 - math.floor(math.log10(statistics.median(own)))) if own else 4
        for heading, own in known.items()
    }
