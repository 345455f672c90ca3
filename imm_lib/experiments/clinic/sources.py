"""The tables of the benchmark: splits of real data, with a restricted model from elsewhere.

A clinic with all measurements has n cases. Another one has m, of whom it knows a few measurements
and the outcome: the restricted model, a logistic or a linear regression, is fitted there.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import checks

CLIP = 5.0
"""Standardised features are clipped there: few cases estimate the scale of a heavy tail badly."""


class Table(NamedTuple):
    """A data set as it is loaded."""

    features: Tensor  # (N, F) float32
    label: Tensor  # (N,) int64 classes, or float32 values
    seen: list[int]  # the features that the restricted model sees
    classes: int  # 0 for real-valued labels


class Part(NamedTuple):
    """N cases; features are standardised."""

    short: Tensor  # (N, c) what the restricted model sees
    rest: Tensor  # (N, f) the rest, the extended context
    label: Tensor  # (N,)
    target: Tensor  # (N, Y) P̂ at the short contexts; (N, 1) means of a regression


class Problem(NamedTuple):
    """One split of a table."""

    train: Part
    test: Part
    classes: int  # 0 for real-valued labels
    side: Part  # what the restricted model was fitted on; the rest is of no use to anybody
    restricted: Callable[[Tensor], Tensor]  # (N, c) short contexts -> (N, Y)


def _fair() -> Table:
    """Has a married woman had an affair (Fair, 1978)? 6,366 answers to a magazine; seen are the
    marriage's rating and its years.
    """
    frame = _statsmodels("fair")
    label = torch.tensor((frame.pop("affairs") > 0).to_numpy())
    return Table(torch.tensor(frame.to_numpy()).float(), label.long(), [0, 2], 2)


def _anes96() -> Table:
    """Clinton or Dole (American National Election Study of 1996)? 944 voters; seen are party and
    age.
    """
    frame = _statsmodels("anes96")
    label = torch.tensor(frame.pop("vote").to_numpy())
    seen = [list(frame.columns).index(name) for name in ("PID", "age")]
    return Table(torch.tensor(frame.to_numpy()).float(), label.long(), seen, 2)


def _statsmodels(name: str):
    try:
        from statsmodels import datasets
    except ImportError as error:
        raise ImportError(
            f"the table {name} needs statsmodels: pip install 'imm_lib[tables]'"
        ) from error
    return getattr(datasets, name).load_pandas().data


def _diabetes() -> Table:
    """How far did the disease go within a year? 442 patients, in standard deviations; seen are body
    mass and blood pressure.
    """
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    label = torch.tensor(data.target).float()
    label = (label - label.mean()) / label.std()
    return Table(torch.tensor(data.data).float(), label, [2, 3], 0)


SEEN = {
    "breast cancer": [0, 1],  # mean radius and mean texture: what a first look gives
    "wine": [0, 9],  # alcohol and the intensity of the colour
    # every second pixel of every second row
    "digits": [8 * row + column for row in range(0, 8, 2) for column in range(0, 8, 2)],
}
"""What the restricted model sees of the tables of classes that scikit-learn has."""


def _bundled(name: str) -> Table:
    from sklearn import datasets

    data = getattr(datasets, f"load_{name.replace(' ', '_')}")()
    label = torch.tensor(data.target).long()
    return Table(torch.tensor(data.data).float(), label, SEEN[name], int(label.max()) + 1)


SOURCES: dict[str, Callable[[], Table]] = {
    **{name: functools.partial(_bundled, name) for name in SEEN},
    "fair": _fair,
    "anes96": _anes96,
    "diabetes": _diabetes,
}
"""What loads each table, by name."""


@functools.cache
def load(name: str) -> Table:
    """A table by name; raises ValueError listing the known ones."""
    if name not in SOURCES:
        raise ValueError(f"task must name a table, one of {', '.join(SOURCES)}, got {name!r}")
    return SOURCES[name]()


def _scaler(values: Tensor) -> Callable[[Tensor], Tensor]:
    """Standardises features by the mean and deviation of ``values``, and clips them at CLIP."""
    mean, deviation = values.mean(0), values.std(0).clamp(min=1e-3)
    return lambda x: ((x - mean) / deviation).clamp(-CLIP, CLIP)


def _restricted(short: Tensor, label: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """A model of the short contexts alone, (N, c) -> (N, Y) probabilities or (N, 1) means."""
    if classes == 0:
        design = torch.cat([short, torch.ones(len(short), 1)], 1).double()
        ridge = torch.eye(design.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(design.T @ design + ridge, design.T @ label.double())

        def means(asked: Tensor) -> Tensor:
            inputs = torch.cat([asked, asked.new_ones(len(asked), 1)], 1).double()
            return (inputs @ solution.to(asked.device)).float().unsqueeze(1)

        return means
    from sklearn.linear_model import LogisticRegression

    if len(label.unique()) < 2:
        raise ValueError(f"m must be enough for two classes, got {len(label)} side cases of one")
    fitted = LogisticRegression(max_iter=1000).fit(short.numpy(), label.numpy())
    count = len(short)

    def probabilities(asked: Tensor) -> Tensor:
        # a class that the side cases lack gets the weight of one case, shared by all classes
        rows = torch.full((len(asked), classes), 1 / classes)
        found = torch.as_tensor(fitted.predict_proba(asked.cpu().numpy())).float()
        rows[:, torch.as_tensor(fitted.classes_)] += count * found
        return (rows / rows.sum(1, keepdim=True)).to(asked.device)

    return probabilities


def draw(name: str, n: int, m: int, seed: int, shift: float = 0.0) -> Problem:
    """Disjoint training, side and test cases of one split; at least a tenth is left for testing.

    Args:
        name: one of SOURCES.
        n: training cases.
        m: side cases, on which the restricted model is fitted.
        seed: of the split.
        shift: share of the side labels that are moved on to the next class: a population of another
            kind.

    Raises:
        TypeError, ValueError: an unknown table, numbers out of range, more cases than there are, or
            side cases of one class only.
    """
    table, total = load(name), len(load(name).label)
    if checks.count("n", n) < 10:
        raise ValueError(f"n must be at least 10, two cases in each of five folds, got {n}")
    if n + checks.count("m", m) > 0.9 * total:
        raise ValueError(f"n + m must be at most {int(0.9 * total)} for {name}, got {n} + {m}")
    shift, generator = checks.number("shift", shift, 0, 1), torch.Generator().manual_seed(seed)
    if shift and not table.classes:
        raise ValueError(f"shift must be 0 for {name}, whose labels are no classes, got {shift}")
    order = torch.randperm(total, generator=generator)
    train, side, test = order[:n], order[n : n + m], order[n + m :]
    rest = [i for i in range(table.features.shape[1]) if i not in set(table.seen)]
    # both samples know the short contexts, only the n training cases the rest
    short_of = _scaler(table.features[order[: n + m]][:, table.seen])
    rest_of = _scaler(table.features[train][:, rest])

    def short(index: Tensor) -> Tensor:
        return short_of(table.features[index][:, table.seen])

    shown = table.label[side].clone()
    if shift:
        moved = torch.rand(m, generator=generator) < shift
        shown[moved] = (shown[moved] + 1) % table.classes
    target = _restricted(short(side), shown, table.classes)

    def part(index: Tensor) -> Part:
        seen = short(index)
        return Part(seen, rest_of(table.features[index][:, rest]), table.label[index], target(seen))

    known = part(side)._replace(label=shown)
    return Problem(part(train), part(test), table.classes, known, target)
