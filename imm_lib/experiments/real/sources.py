"""Real data with side information: splits of scikit-learn's tables and digits, and restricted
models fitted apart.

A clinic with all measurements has n patients; another one has m, of whom it knows two measurements
and the outcome. The restricted model is fitted there, and handed to the clinic with all. The digits
tell the same story: a quarter of the pixels of many images, all pixels of few.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import checks

CLIP = 5.0
"""Standardised features are clipped there: few cases estimate the scale of a heavy tail badly."""


class Part(NamedTuple):
    """N labelled examples; features are standardised."""

    short: Tensor  # (N, c) what the restricted model sees
    rest: Tensor  # (N, f) the rest, the extended context
    label: Tensor  # (N,)

    def to(self, device: torch.device) -> "Part":
        """The same examples on another device."""
        return Part(*(values.to(device) for values in self))


class Problem(NamedTuple):
    """One split of a data set."""

    name: str
    train: Part
    test: Part
    # (B, c) short contexts -> (B, Y) probabilities, on the device of the contexts
    target: Callable[[Tensor], Tensor]
    labels: int

    def to(self, device: torch.device) -> "Problem":
        """The same split on another device."""
        return self._replace(train=self.train.to(device), test=self.test.to(device))


@functools.cache
def source(name: str) -> tuple[Tensor, Tensor, list[int]]:
    """(N, F) features, (N,) labels, and which features the restricted model sees, of a data set of
    scikit-learn's.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    from sklearn import datasets

    known = {
        # mean radius and mean texture: what a first look gives
        "breast cancer": (datasets.load_breast_cancer, [0, 1]),
        # alcohol and the intensity of the colour
        "wine": (datasets.load_wine, [0, 9]),
        # every second pixel of every second row
        "digits": (
            datasets.load_digits,
            [8 * row + column for row in range(0, 8, 2) for column in range(0, 8, 2)],
        ),
    }
    if name not in known:
        raise ValueError(f"source must be one of {', '.join(known)}, got {name!r}")
    load, seen = known[name]
    data = load()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target), seen


def check_sizes(name: str, sizes: list[int], side: dict[str, int]) -> None:
    """Raise ValueError unless a source is known, and has a tenth left for testing beside every
    size and its number of side examples.
    """
    total = len(source(name)[1])
    if name not in side:
        raise ValueError(f"m must name the side examples of {name}, got {', '.join(side)}")
    for n in sizes:
        if n < 2 or n + side[name] > 0.9 * total:
            raise ValueError(
                f"cases must have at least 2 examples, and with m at most {int(0.9 * total)} for "
                f"{name}, got {n} and {side[name]}"
            )


def scaler(values: Tensor) -> Callable[[Tensor], Tensor]:
    """Standardises features by the mean and deviation of ``values``, and clips them at CLIP."""
    mean, deviation = values.mean(0), values.std(0).clamp(min=1e-3)
    return lambda x: ((x - mean) / deviation).clamp(-CLIP, CLIP)


def draw(name: str, n: int, m: int, seed: int, shift: float = 0.0) -> Problem:
    """Disjoint training, side and test data of one split; at least a tenth of the examples is for
    testing.

    The restricted model is scikit-learn's logistic regression on the m side examples.

    Args:
        name: "breast cancer", "wine" or "digits".
        n: full training examples.
        m: side examples, of which the restricted features and the label are known.
        seed: of the split.
        shift: share of the side labels that are moved on to the next class: a population of another
            kind.

    Raises:
        TypeError, ValueError: an unknown source, numbers out of range, more examples than there
            are, or side examples of one class only.
    """
    from sklearn.linear_model import LogisticRegression

    features, label, seen = source(name)
    total = len(label)
    if checks.count("n", n) < 2:
        raise ValueError(f"n must be at least 2, as features are standardised, got {n}")
    if n + checks.count("m", m) > 0.9 * total:
        raise ValueError(f"n + m must be at most {int(0.9 * total)} for {name}, got {n} + {m}")
    shift = checks.number("shift", shift, 0, 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(total, generator=generator)
    train, side, test = order[:n], order[n : n + m], order[n + m :]
    rest = [i for i in range(features.shape[1]) if i not in set(seen)]
    short_of = scaler(features[order[: n + m]][:, seen])
    rest_of = scaler(features[train][:, rest])

    def part(index: Tensor) -> Part:
        return Part(
            short_of(features[index][:, seen]), rest_of(features[index][:, rest]), label[index]
        )

    labels, shown = int(label.max()) + 1, label[side].clone()
    moved = torch.rand(m, generator=generator) < shift
    shown[moved] = (shown[moved] + 1) % labels
    if len(shown.unique()) < 2:
        raise ValueError(f"m must be enough for two classes, got {m} side examples of one")
    short = short_of(features[side][:, seen])
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(short.numpy(), shown.numpy())
    # a class that the side sample lacks has probability 0: smoothed by one example's weight
    prior = torch.full((labels,), 1 / labels)

    def target(short: Tensor) -> Tensor:
        rows = torch.zeros(len(short), labels)
        rows[:, torch.as_tensor(fitted.classes_)] = torch.as_tensor(
            fitted.predict_proba(short.cpu().numpy())
        ).float()
        return ((m * rows + prior) / (m + 1)).to(short.device)

    return Problem(name, part(train), part(test), target, labels)
