"""The paper's starting example: points of the unit cube on two sides of a plane, and what one
coordinate says of them.

Tensors of many Monte-Carlo runs have the run in their last dimension: whatever is summed over data
points is then a sum of contiguous rows, which is several times faster on a CPU than a sum within
rows.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import checks

TEST_POINTS = 2**14
"""Points of the test set: a scrambled Sobol sequence, whose error in a volume is far below one over
their root.
"""


class Data(NamedTuple):
    """n labelled points in each of R runs. The short context is x1, the extended context (x2,
    x3).
    """

    short: Tensor  # (n, R)
    extended: Tensor  # (2, n, R)
    label: Tensor  # (n, R), 0 or 1
    target: Tensor  # (n, R), the restricted model's probability of label 1

    def first(self, n: int) -> "Data":
        """The first n points of every run, so that data sets of different sizes are nested.

        Raises:
            ValueError: fewer than 2 points, or more than there are.
        """
        if checks.count("n", n) < 2 or n > len(self.short):
            raise ValueError(f"n must be in [2, {len(self.short)}], got {n}")
        return Data(self.short[:n], self.extended[:, :n], self.label[:n], self.target[:n])

    def to(self, device: torch.device) -> "Data":
        """The same runs on another device."""
        return Data(*(values.to(device) for values in self))

    def repeat(self, times: int) -> "Data":
        """The same runs, ``times`` times one after another: (n, times x R)."""
        return Data(*(torch.cat([values] * times, -1) for values in self))

    def weaken(self, coin: float) -> "Data":
        """With a target of lower quality: a share ``coin`` of its labels is a fair coin's (Appendix
        D.4).
        """
        coin = checks.number("coin", coin, 0, 1)
        return self._replace(target=(1 - coin) * self.target + coin / 2)


@dataclass(frozen=True)
class Plane:
    """The true separating plane g(x) = normal · x + offset; the label is 1 where g is positive.

    Raises:
        ValueError: a coefficient is not finite, or the plane leaves one class of the cube's points
            empty.

    >>> plane = Plane((1.0, 1.0, 1.0), -1.5)
    >>> plane.restricted(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.1250, 0.5000, 0.8750])
    """

    normal: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset: float = -1.5

    def __post_init__(self):
        if len(self.normal) != 3:
            raise ValueError(f"normal must hold 3 coefficients, got {self.normal!r}")
        for value in (*self.normal, self.offset):
            checks.number("a coefficient of the plane", value, -math.inf)
        low, high = (self.offset + sum(side(a, 0.0) for a in self.normal) for side in (min, max))
        if not low < 0 < high:
            raise ValueError(
                f"plane must leave points of the cube on both sides, got g in [{low:g}, {high:g}]"
            )

    @classmethod
    def through_centre(cls, *normal: float) -> "Plane":
        """The plane of that normal through the cube's centre."""
        a, b, c = (float(a) for a in normal)
        return cls((a, b, c), -sum(normal) / 2)

    def label(self, x: Tensor) -> Tensor:
        """(..., 3) points -> (...) labels, 0 or 1, in the dtype of ``x``."""
        normal = torch.tensor(self.normal, dtype=torch.float64, device=x.device)
        return (x.double() @ normal + self.offset > 0).to(x.dtype)

    def restricted(self, x1: Tensor) -> Tensor:
        """The restricted Bayes model P(y = 1 | x1), exactly: the share of the slice at x1 that lies
        above the plane.
        """
        a, b, c = self.normal
        # a negative coefficient turns its coordinate around, which the uniform law does not notice
        level = -self.offset - a * x1.double() - min(b, 0.0) - min(c, 0.0)
        small, large = sorted((abs(b), abs(c)))
        if large == 0:
            below = (level >= 0).double()
        elif small < 1e-9 * large:
            below = (level / large).clamp(0, 1)
        else:
            parts = [
                (level - shift).clamp(min=0) ** 2 for shift in (0.0, small, large, small + large)
            ]
            below = ((parts[0] - parts[1] - parts[2] + parts[3]) / (2 * small * large)).clamp(0, 1)
        return (1 - below).to(x1.dtype)

    def draw(
        self,
        runs: int,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Data:
        """n uniform points in each of ``runs`` runs, with their labels and the exact restricted
        model as target.

        Raises:
            TypeError, ValueError: ``runs`` is not an int of at least 1, or ``n`` of at least 2.
        """
        if checks.count("n", n) < 2:
            raise ValueError(f"n must be at least 2, got {n}")
        checks.generator(generator)
        device = "cpu" if generator is None else generator.device
        shape = (checks.count("runs", runs), n, 3)
        x = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
        parts = x.permute(2, 1, 0), self.label(x).T, self.restricted(x[..., 0]).T
        features, label, target = (part.to(dtype).contiguous() for part in parts)
        return Data(features[0], features[1:], label, target)

    def accuracy(self, weights: Tensor, share: float | Tensor = 0.0) -> Tensor:
        """(4, R) weights (w1, w2, w3, bias) -> (R,) test accuracies in per cent.

        ``share``, a number or (R,), is the weight of the restricted model in an interpolation at
        prediction time; 0 is the model itself.
        """
        x = test_points().to(weights)
        truth = self.label(x.double()).bool()
        logits = torch.addmm(weights[3], x, weights[:3])
        share = torch.as_tensor(share, dtype=weights.dtype, device=weights.device)
        if share.any():
            mixed = (1 - share) * logits.sigmoid() + share * self.restricted(x[:, 0]).unsqueeze(1)
            positive = mixed > 0.5
        else:
            positive = logits > 0
        return 100 * (positive == truth.unsqueeze(1)).double().mean(0)

    def restricted_risk(self, weights: Tensor, slices: int = 64, points: int = 256) -> Tensor:
        """(4, R) weights -> (R,) the IMM risk E H(P(·|x1), Q̂(·|x1)) of the whole cube, in nats
        (eq. 7).

        Q̂ is the true induced model: the average over uniform (x2, x3), by ``points`` Sobol points
        in each of ``slices`` slices.
        """
        x1 = (torch.arange(slices, dtype=weights.dtype, device=weights.device) + 0.5) / slices
        rest = test_points(points)[:, 1:].to(weights)
        p = self.restricted(x1)
        total = torch.zeros_like(weights[0])
        for value, one in zip(x1, p, strict=True):
            logits = torch.addmm(weights[3] + value * weights[0], rest, weights[1:3])
            log_one, log_zero = (
                torch.nn.functional.logsigmoid(s * logits).logsumexp(0) for s in (1, -1)
            )
            total -= one * log_one + (1 - one) * log_zero - math.log(points)
        return total / slices


def test_points(count: int = TEST_POINTS) -> Tensor:
    """(count, 3) points of the cube, the same in every call, in float64."""
    return torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(count, dtype=torch.float64)
