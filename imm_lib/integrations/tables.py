"""Columns of a table as short contexts: numbers in their own units, categories as levels.

A table is a pandas DataFrame, a 2-D array, a tensor or a scipy sparse matrix; pandas is not
imported unless it made the table. A missing value, of any kind, is a level of its own.
"""

import datetime
import decimal
import difflib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from imm_lib import checks

NEITHER = (datetime.date, datetime.timedelta, np.datetime64, np.timedelta64, decimal.Decimal)
"""Values that are quantities, but that a kernel cannot compare."""

MISSING = None
"""What stands for a missing value in a row's key."""


def is_frame(table: Any) -> bool:
    """Whether ``table`` is a pandas DataFrame, told without importing pandas."""
    return any(
        kind.__name__ == "DataFrame" and kind.__module__.split(".")[0] == "pandas"
        for kind in type(table).__mro__
    )


def select(table: Any, columns: Sequence[Hashable]) -> Any:
    """The columns of a table: a DataFrame of a DataFrame, a 2-D array of anything else. Raises
    TypeError for no table, ValueError for no such column, one that occurs twice, or no rows.
    """
    if is_frame(table):
        _must_have(columns, list(table.columns))
        found = table[list(columns)]
    else:
        array, places = _array(table), np.array(columns, dtype=object)
        _must_have(columns, list(range(array.shape[1])))
        found = array[:, places.astype(np.int64)]
    if len(found) == 0:
        raise ValueError("frame must have at least one row, got none")
    return found


def _array(table: Any) -> np.ndarray:
    if isinstance(table, torch.Tensor):
        table = table.detach().cpu().numpy()
    elif hasattr(table, "toarray"):  # scipy's sparse matrices
        table = table.toarray()
    if isinstance(table, np.ma.MaskedArray):
        raise TypeError("frame must mark missing values itself, got a masked array: fill it first")
    if not isinstance(table, np.ndarray):
        hint = "; take its to_pandas()" if hasattr(table, "to_pandas") else ""
        raise TypeError(
            "frame must be a pandas DataFrame, a 2-D array, tensor or sparse matrix, "
            f"got {checks.describe(table)}{hint}"
        )
    if table.ndim != 2:
        raise ValueError(f"frame must be 2-D, rows by columns, got the shape {table.shape}")
    return table


def _must_have(columns: Sequence[Hashable], there: list) -> None:
    for column in columns:
        if isinstance(column, bool) and not any(isinstance(name, bool) for name in there):
            raise TypeError(f"columns must be names or positions, got {column}: no mask")
        if there.count(column) > 1:
            raise ValueError(f"frame has {there.count(column)} columns named {column!r}")
        if column not in there:
            near = difflib.get_close_matches(str(column), [str(name) for name in there], 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {_few(there)}"
            raise ValueError(f"frame has no column {column!r}; {hint}")


def _few(values: Iterable[Any], most: int = 5) -> str:
    values = list(values)
    told = ", ".join(repr(value) for value in values[:most])
    return told + (f" and {len(values) - most} more" if len(values) > most else "")


def _column(table: Any, place: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column and which of them are missing."""
    if is_frame(table):
        column = table.iloc[:, place]
        missing = column.isna().to_numpy()
        if str(column.dtype).startswith(("Int", "UInt", "Float")):  # pandas' nullable numbers
            return column.to_numpy(dtype=np.float64, na_value=np.nan), missing
        return column.to_numpy(), missing
    values = table[:, place]
    if values.dtype == object:
        missing = [
            value is None or (isinstance(value, float) and value != value) for value in values
        ]
        return values, np.array(missing)
    return values, np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)


def _is_numeric(name: Hashable, values: np.ndarray, missing: np.ndarray) -> bool:
    present = values[~missing] if values.dtype.kind == "O" else values[:0]
    strange = [type(value).__name__ for value in present if isinstance(value, NEITHER)]
    if values.dtype.kind in "mMc" or strange:
        kind = strange[0] if strange else str(values.dtype)
        raise TypeError(
            f"column {name!r} must hold numbers or categories, got {kind}; "
            "make a number of it first, days since some day for instance"
        )
    if missing.all():
        return False
    if values.dtype.kind != "O":
        return values.dtype.kind in "iuf"
    return all(
        isinstance(value, int | float | np.number) and not isinstance(value, bool)
        for value in present
    )


def _numbers(name: Hashable, values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Float64 numbers, 0 for missing ones."""
    try:
        found = np.where(missing, 0, values).astype(np.float64)
    except (TypeError, ValueError):
        strange = next(v for v in values[~missing] if not isinstance(v, int | float | np.number))
        raise ValueError(f"column {name!r} must hold numbers, got {strange!r}") from None
    if not np.isfinite(found).all():
        raise ValueError(f"column {name!r} must hold finite numbers, got infinite ones")
    if values.dtype.kind in "iu" and (found.astype(values.dtype) != values).any():
        raise ValueError(f"column {name!r} must hold integers below 2^53, got larger ones")
    return found


def _levels(name: Hashable, values: np.ndarray, missing: np.ndarray) -> list:
    """The level of each row, hashable, ``MISSING`` for a missing value."""
    found = [
        MISSING if gone else value for value, gone in zip(values.tolist(), missing, strict=True)
    ]
    for value in found:
        if not isinstance(value, Hashable):
            raise TypeError(f"column {name!r} must hold hashable categories, got {value!r}")
    return found


def _holds(dtype: Any, values: np.ndarray) -> bool:
    """Whether a type, numpy's or pandas', holds float64 numbers: an integer type of the training
    rows does not hold a 2.5 of others.
    """
    dtype = np.dtype(getattr(dtype, "numpy_dtype", dtype))
    present = values[~np.isnan(values)]
    if dtype.kind == "f":
        return bool((np.abs(present) <= np.finfo(dtype).max).all())
    if dtype.kind not in "iu":
        return True
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return bool(((present >= low) & (present <= high) & (present == np.round(present))).all())


@dataclass(frozen=True)
class Coding:
    """How rows of a table become short contexts, and back.

    Attributes:
        columns: the names, or positions, of the columns.
        numeric: for each, whether it is a number.
        empty: the table without its rows; it keeps the types.
        blank: for each column, what the table has for a missing value.
        keys: the combinations of levels that occur, in the order of their numbers: a level for a
            category, and for a number whether it is missing.
    """

    columns: tuple
    numeric: tuple[bool, ...]
    empty: Any
    blank: tuple
    keys: tuple[tuple, ...]

    @classmethod
    def of(cls, table: Any, columns: Sequence[Hashable], categorical: Iterable) -> "Coding":
        """The coding of a selected table, whose rows it must be able to write."""
        categorical, numeric, blank = set(categorical), [], []
        if unknown := categorical - set(columns):
            raise ValueError(f"categorical must name some of columns, got {_few(unknown)}")
        for place, name in enumerate(columns):
            values, missing = _column(table, place)
            # pandas' categories may be numbers
            kind = table.dtypes.iloc[place].name if is_frame(table) else ""
            declared = name in categorical or kind == "category"
            numeric.append(not declared and _is_numeric(name, values, missing))
            gone = {repr(value) for value in values[missing].tolist()}
            if len(gone) > 1:
                raise ValueError(
                    f"column {name!r} must have one mark for a missing value, got "
                    f"{' and '.join(sorted(gone))}, which the model may tell apart"
                )
            blank.append(values[missing.argmax()] if missing.any() else None)
        draft = cls(tuple(columns), tuple(numeric), table[:0], tuple(blank), ())
        return replace(draft, keys=tuple(dict.fromkeys(draft._keys(table))))

    def _columns(self, table: Any) -> Iterator[tuple[Hashable, bool, np.ndarray, np.ndarray]]:
        """The name of each column, whether it is a number, its values and which are missing."""
        for place, (name, numeric) in enumerate(zip(self.columns, self.numeric, strict=True)):
            yield name, numeric, *_column(table, place)

    def _keys(self, table: Any) -> list[tuple]:
        parts = [
            missing.tolist() if numeric else _levels(name, values, missing)
            for name, numeric, values, missing in self._columns(table)
        ]
        return list(zip(*parts, strict=True))

    def groups(self, table: Any) -> np.ndarray:
        """(n,) number of each row's combination of levels, -1 for one that is not known."""
        number = {key: place for place, key in enumerate(self.keys)}
        return np.array([number.get(key, -1) for key in self._keys(table)])

    def values(self, table: Any) -> np.ndarray:
        """(n, d) float64 numbers, 0 for missing ones."""
        found = [
            _numbers(name, *column) for name, numeric, *column in self._columns(table) if numeric
        ]
        return np.stack(found, 1) if found else np.zeros((len(table), 0))

    def spread(self, table: Any) -> np.ndarray:
        """(d,) standard deviations of the numbers that are not missing; 1 for a constant."""
        spread = np.array(
            [
                _numbers(name, values, missing)[~missing].std()
                for name, numeric, values, missing in self._columns(table)
                if numeric
            ]
        )
        return np.where(spread > 0, spread, 1.0)

    def told(self, table: Any, row: int) -> str:
        """A row in words, for an error."""
        cells = self._columns(table[row : row + 1])
        return ", ".join(f"{name}={values[0]!s}" for name, _, values, _ in cells)

    def decode(self, group: np.ndarray, values: np.ndarray) -> Any:
        """(n,) numbers of combinations and (n, d) values -> the table they stand for."""
        keys, numbers, found = [self.keys[g] for g in group], iter(values.T), []
        for place, numeric in enumerate(self.numeric):
            level = [key[place] for key in keys]
            if numeric:
                column = next(numbers)
                found.append(np.where(level, np.nan, column) if any(level) else column)
            else:
                found.append([self.blank[place] if value is MISSING else value for value in level])
        if is_frame(self.empty):
            frame = type(self.empty)(dict(enumerate(found)))
            types = {
                place: dtype
                for place, dtype in enumerate(self.empty.dtypes)
                if not self.numeric[place] or _holds(dtype, found[place])
            }
            return frame.astype(types).set_axis(self.empty.columns, axis=1)
        if all(self.numeric):
            whole = np.stack(found, 1)
            return whole.astype(self.empty.dtype) if _holds(self.empty.dtype, whole) else whole
        columns = [np.array(column, dtype=object) for column in found]
        return np.stack(columns, 1).astype(self.empty.dtype)
