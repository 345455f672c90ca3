"""What a configuration may hold: checked before any work, against what the experiment declares."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imm_lib.experiments.catalogue import suggestion

if TYPE_CHECKING:
    from imm_lib.experiments.runner import Experiment


_COUNTS = """
batch batches blocks bootstrap cross_validated dev draws epochs extended groups k labels layers
length lines longer loop_steps measured n old passes periods pieces repeats seeds short size sizes
snippet_batch snippet_lines splits steps target_pieces test train unroll valid width window
"""
COUNTS = {**dict.fromkeys(re.findall(r"\w+", _COUNTS), 1), "folds": 2, "runs": 2}
"""Names that are whole numbers wherever they stand, alone or in lists, and the least they can be:
one run has no spread.
"""

POSITIVE = (
    "bandwidth",
    "clip",
    "decay",
    "decays",
    "least_lr",
    "lr",
    "lrs",
    "other_bandwidths",
    "scale",
)
"""Names that are real numbers above 0."""

SHARES = ("coins", "dropout", "momenta", "rhos", "weights")
"""Names that are real numbers in [0, 1]."""

EMPTY = ("bandwidth", "cross_validated", "other_bandwidths", "tasks")
"""Names of lists and objects that may have no entry. An inner object may, as it has defaults."""


def check_scale(experiment: Experiment, scale: str) -> None:
    """Raise ValueError, listing the known ones, unless the experiment has that scale."""
    one_of("scale", scale, experiment.scales)


def adjusted(experiment: Experiment, scale: str, changes: dict) -> Experiment:
    """The experiment with other values in one scale's configuration; lists and objects are replaced
    whole.

    Args:
        experiment: what is adjusted; it is not changed.
        scale: one of ``experiment.scales``.
        changes: new values by name.

    Raises:
        ValueError: an unknown scale, a name that the configuration does not have, or a value that
            is not :func:`like` the one that it replaces.
    """
    check_scale(experiment, scale)
    config = experiment.scales[scale]
    for name, value in changes.items():
        if name not in config:
            near = suggestion(name, config)
            raise ValueError(
                f"{experiment.name} has no {name!r}: it must be one of {', '.join(config)}{near}"
            )
        like(name, value, config[name])
    return replace(experiment, scales={**experiment.scales, scale: {**config, **changes}})


def check(experiment: Experiment, scale: str) -> None:
    """Refuse a configuration that cannot work: by the rules of :func:`sound`, then by the
    experiment's own ``check``.

    Raises:
        ValueError: an unknown scale, or a value that cannot be; the message names it.
    """
    check_scale(experiment, scale)
    config = experiment.scales[scale]
    for name, value in config.items():
        sound(name, value)
    if experiment.check is not None:
        try:
            experiment.check(config)
        except TypeError as error:  # of the checks that this library's functions share
            raise ValueError(str(error)) from None


def distinct(name: str, units: list[dict]) -> None:
    """Raise ValueError where a configuration makes no unit of work, or one of them twice."""
    if not units:
        raise ValueError(f"{name} has no unit of work in this configuration")
    seen = set()
    for unit in units:
        word = json.dumps(unit, sort_keys=True, ensure_ascii=False)
        if word in seen:
            raise ValueError(f"{name} has a unit of work twice in this configuration: {word}")
        seen.add(word)


def sound(name: str, value: Any) -> None:
    """Raise ValueError for a number that is not finite, is negative, or is not what its name says.

    None stands for a default; words are the business of the experiment's own check.
    """
    if isinstance(value, float | int) and not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{name} must hold finite numbers, none below 0, got {value}")
    last = name.rpartition("/")[2]
    if last not in EMPTY and (isinstance(value, list | tuple) or (value == {} and last == name)):
        filled(name, value)
    if last in COUNTS or last in POSITIVE or last in SHARES:
        for item in _flat(value):
            _number(name, last, item)
    inner: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = ((str(index), item) for index, item in enumerate(value))
    for key, item in inner:
        sound(f"{name}/{key}", item)


def _flat(value: Any) -> list:
    if isinstance(value, list | tuple):
        return [part for item in value for part in _flat(item)]
    return [] if value is None or isinstance(value, dict | str) else [value]


def _number(name: str, last: str, item: Any) -> None:
    whole = isinstance(item, int) and not isinstance(item, bool)
    real = whole or isinstance(item, float)
    if last in COUNTS and not (whole and item >= COUNTS[last]):
        raise ValueError(f"{name} must be whole numbers of at least {COUNTS[last]}, got {item!r}")
    if last in POSITIVE and not (real and item > 0):
        raise ValueError(f"{name} must be above 0, got {item!r}")
    if last in SHARES and not (real and item <= 1):
        raise ValueError(f"{name} must be in [0, 1], got {item!r}")


def like(name: str, value: Any, declared: Any) -> None:
    """Raise ValueError unless a value is of the kind of the declared one, at every depth.

    A whole number may stand for a real one, anything for None. A list's items are like the
    declared one's first, or one of its other kinds; an object's values are like the declared
    values of their names, and those of new names like any of them.
    """
    if declared is None:
        return
    if isinstance(declared, dict):
        fits = isinstance(value, dict)
    elif isinstance(declared, list | tuple):
        fits = isinstance(value, list | tuple)
    elif isinstance(declared, float):
        fits = isinstance(value, float | int) and not isinstance(value, bool)
    else:
        fits = type(value) is type(declared)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name} must be like {_short(declared)}, got {_short(value)}")
    if isinstance(declared, dict):
        for key, item in value.items():
            models = [declared[key]] if key in declared else list(declared.values())
            _like_one(f"{name}/{key}", item, models)
    elif isinstance(declared, list | tuple):
        for index, item in enumerate(value):
            _like_one(f"{name}/{index}", item, list(declared))


def _like_one(name: str, value: Any, models: list) -> None:
    """Like the first of the models, or another; the message is of the first."""
    problem = None
    for model in models:
        try:
            return like(name, value, model)
        except ValueError as error:
            problem = problem or error
    if problem is not None:
        raise problem


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."


def one_of(name: str, value: Any, known: Iterable) -> None:
    """Raise ValueError, listing what is known, for a value that is not."""
    known = list(known)
    if value not in known:
        words = ", ".join(map(str, known))
        near = suggestion(value, map(str, known)) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {words}, got {value!r}{near}")


def each(name: str, values: Any, known: Iterable) -> None:
    """Raise ValueError for an empty list, or an item that is not known."""
    filled(name, values)
    for value in values:
        one_of(name, value, known)


def filled(name: str, values: Any) -> None:
    """Raise ValueError for what is no list or object, or has no entry."""
    if not isinstance(values, list | tuple | dict) or not values:
        raise ValueError(f"{name} must have at least one entry, got {_short(values)}")


def at_most(name: str, values: Any, high: float) -> None:
    """Raise ValueError for a number, alone or in a list, above ``high``."""
    for item in _flat(values):
        if item > high:
            raise ValueError(f"{name} must be at most {high:g}, got {item}")


def rows(name: str, values: Any, length: int) -> None:
    """Raise ValueError unless there is at least one entry, each a list of that length."""
    filled(name, values)
    for row in values:
        if not isinstance(row, list | tuple) or len(row) != length:
            raise ValueError(f"{name} must hold lists of {length} entries, got {_short(row)}")
