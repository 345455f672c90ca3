"""Logistic regression on a finite world: many data sets of one size, fitted together to
convergence.

A world has Z cells, what one can see of an example. A *view* is a function of the cell, such as a
feature or a coarser version of one: the short context, whose extended contexts are its cells. R
data sets are counts, (R, Z, 2), and the R fits are one tensor program in float64. Everything has a
closed form but the fit itself, so that simulation can be held against theory to its own error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.contexts import BeliefContexts
from imm_lib.worth import informations

INFINITE = "inf"
"""As JSON has it: pairs enough for a perfect target."""
FAR = 20.0
"""A logit's parameter beyond which a fit counts as at infinity."""


class Restriction(NamedTuple):
    """An IMM term: a view, what the restricted model says of it, and how much it counts.

    Attributes:
        view: (Z,) the short context of each cell, in [0, G).
        pairs: (R, G, 2) weights of (s, y) pairs, shares of 1: P̂(y|s) times the weight of s.
        belief: (Z,) or (R, Z), π(cell | s); sums to 1 over the cells of a short context.
        lam: λ.
    """

    view: Tensor
    pairs: Tensor
    belief: Tensor
    lam: float


def by_view(values: Tensor, view: Tensor) -> Tensor:
    """(..., Z) summed over the cells of each short context -> (..., G)."""
    sums = values.new_zeros(*values.shape[:-1], int(view.max()) + 1)
    return sums.index_add_(-1, view, values)


def share(weight: Tensor, view: Tensor) -> Tensor:
    """(..., Z) weights of the cells as shares of their short context, π(cell | s); 0 where there is
    no weight.
    """
    return weight / by_view(weight, view)[..., view].clamp(min=1e-300)


@dataclass(frozen=True)
class LogitWorld:
    """P(y = 1 | cell) = σ(features · theta) on Z cells; float64.

    Attributes:
        features: (Z, d).
        pi: (Z,) probabilities of the cells.
        theta: (d,) the true parameters.
        views: (Z,) short contexts, by name.
    """

    features: Tensor
    pi: Tensor
    theta: Tensor
    views: dict[str, Tensor]

    @classmethod
    def draw(
        cls, seed: int = 0, short: int = 4, extended: int = 6, strength: float = 1.0
    ) -> "LogitWorld":
        """A world with a bias, a feature of s and two of e, which depend on s a little;
        ``strength`` scales theta.
        """
        generator = torch.Generator().manual_seed(seed)
        features = torch.ones(short, extended, 4, dtype=torch.float64)
        features[..., 1] = torch.linspace(-1, 1, short, dtype=torch.float64).unsqueeze(1)
        features[..., 2:] = torch.randn(extended, 2, generator=generator, dtype=torch.float64)
        pi = torch.rand(short, extended, generator=generator, dtype=torch.float64) + 0.3
        theta = strength * torch.tensor([0.3, 1.0, -1.0, 0.7], dtype=torch.float64)
        view = torch.arange(short).repeat_interleave(extended)
        return cls(features.flatten(0, 1), (pi / pi.sum()).flatten(), theta, {"s": view})

    @classmethod
    def grid(cls, side: int = 5, interaction: float = 1.0, seed: int = 0) -> "LogitWorld":
        """Two features x1 and x2 of ``side`` levels each, that depend on each other a little.

        The logit is a sum of a bias, x1, x2, their squares and their product; ``interaction`` is
        the product's true parameter. Views: each feature, whether x1 is above the middle, how many
        of the two are, and nothing at all.
        """
        generator = torch.Generator().manual_seed(seed)
        level = torch.linspace(-1, 1, side, dtype=torch.float64)
        x1, x2 = (x.flatten() for x in torch.meshgrid(level, level, indexing="ij"))
        features = torch.stack([torch.ones_like(x1), x1, x2, x1**2, x2**2, x1 * x2], 1)
        pi = (0.3 + torch.rand(len(x1), generator=generator, dtype=torch.float64)) * torch.exp(
            x1 * x2 / 2
        )
        theta = torch.tensor([0.2, 1.5, -1.0, 0.5, 0.5, interaction], dtype=torch.float64)
        first, second = torch.cartesian_prod(torch.arange(side), torch.arange(side)).T
        views = {
            "x1": first,
            "x2": second,
            "half of x1": (x1 > 0).long(),
            "how many above": (x1 > 0).long() + (x2 > 0).long(),
            "nothing": torch.zeros_like(first),
        }
        return cls(features, pi / pi.sum(), theta, views)

    def to(self, device: torch.device) -> "LogitWorld":
        """The same world on another device."""
        features, pi, theta = (x.to(device) for x in (self.features, self.pi, self.theta))
        views = {name: view.to(device) for name, view in self.views.items()}
        return LogitWorld(features, pi, theta, views)

    def probability(self, theta: Tensor) -> Tensor:
        """(..., d) -> (..., Z) Q(1 | cell)."""
        return torch.sigmoid(theta @ self.features.T)

    def joint(self) -> Tensor:
        """(Z, 2) the true π P."""
        p = self.probability(self.theta)
        return self.pi.unsqueeze(1) * torch.stack([1 - p, p], 1)

    def target(self, view: Tensor) -> Tensor:
        """(G, 2) the true induced model P̄(y|s) of a view."""
        joint = by_view(self.joint().T, view).T
        return joint / joint.sum(1, keepdim=True)

    def estimated(
        self, view: Tensor, m: int | str, runs: int, generator: torch.Generator
    ) -> Tensor:
        """(R, G, 2) P̂ of a view: counted in m pairs of each run, half a pair added to each label;
        or the true one, for m = INFINITE.
        """
        if isinstance(m, str):  # INFINITE
            return self.target(view).expand(runs, -1, -1)
        pairs = m * by_view(self.sample(m, runs, generator).mT, view).mT + 0.5
        return pairs / pairs.sum(-1, keepdim=True)

    def sample(self, n: int, runs: int, generator: torch.Generator) -> Tensor:
        """(R, Z, 2) shares of the n points of each of R data sets; drawn where the generator is."""
        joint = self.joint().flatten()
        size = checks.count("runs", runs) * checks.count("n", n)
        law = joint.to(generator.device)
        drawn = torch.multinomial(law, size, True, generator=generator).view(runs, n)
        counts = joint.new_zeros(runs, len(joint))
        counts.scatter_add_(1, drawn.to(joint.device), joint.new_ones(runs, n))
        return counts.view(runs, -1, 2) / n

    def excess(self, theta: Tensor) -> Tensor:
        """(R, d) -> (R,) Σ π KL(P(·|cell) ‖ Q(·|cell)) in nats."""
        p, logit = self.probability(self.theta), theta @ self.features.T
        entropy = torch.special.entr(p) + torch.special.entr(1 - p)
        cross = torch.nn.functional.softplus(logit) - p * logit
        return (self.pi * (cross - entropy)).sum(-1)

    def informations(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """I, and J and K of a view, at the true parameters and the true π; by automatic
        differentiation.
        """
        theta = self.theta.clone().requires_grad_()

        def query(short: Tensor, cell: Tensor) -> Tensor:
            logit = self.features[cell] @ theta
            return torch.stack([torch.zeros_like(logit), logit], 1).log_softmax(1)

        cells = torch.arange(len(self.pi), device=view.device)
        belief = self.pi.new_zeros(int(view.max()) + 1, len(cells))
        belief[view, cells] = share(self.pi, view)
        return informations(query, [theta], BeliefContexts(belief), view, cells, self.pi)


def closed_informations(
    features: Tensor, cells: Tensor, view: Tensor, theta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`imm_lib.worth.informations` finds, (R, d, d) each, for R data sets at once and in
    closed form.

    Args:
        features: (Z, d).
        cells: (R, Z) weights of the cells, which sum to 1.
        view: (Z,) the short context of each cell.
        theta: (R, d) parameters.
    """
    q = torch.sigmoid(theta @ features.T)
    variance, belief, weight = q * (1 - q), share(cells, view), by_view(cells, view)
    one = by_view(belief * q, view)
    slope = by_view((belief * variance).unsqueeze(1) * features.T, view)  # (R, d, G)
    scale = (one * (1 - one)).clamp(min=1e-100)
    # Σ_y Q(y|cell) ∇log Q̂(y|s) is the slope of Q̂ times (q - q̂) / (q̂ (1 - q̂))
    influence = cells * ((q - one[:, view]) / scale[:, view]).square()
    return (
        torch.einsum("rz,zd,zf->rdf", cells * variance, features, features),
        torch.einsum("rs,rds,rfs->rdf", weight / scale, slope, slope),
        torch.einsum("rs,rds,rfs->rdf", by_view(influence, view), slope, slope),
    )


def value(
    features: Tensor, counts: Tensor, restrictions: Sequence[Restriction], theta: Tensor
) -> Tensor:
    """(R,) -Σ counts log Q - Σ_k λ_k Σ pairs_k log Q̂_k at the (R, d) parameters; arguments as of
    :func:`fit`.
    """
    logit = theta @ features.T
    found = (counts.sum(-1) * torch.nn.functional.softplus(logit) - counts[..., 1] * logit).sum(1)
    for view, pairs, belief, lam in restrictions:
        one = by_view(belief * torch.sigmoid(logit), view)
        found = found - lam * (
            torch.xlogy(pairs[..., 1], one) + torch.xlogy(pairs[..., 0], 1 - one)
        ).sum(-1)
    return found


def derivatives(
    features: Tensor, counts: Tensor, restrictions: Sequence[Restriction], theta: Tensor
) -> tuple[Tensor, Tensor]:
    """(R, d) the gradient of :func:`value`, and (R, d, d) its Fisher information."""
    total, q = counts.sum(-1), torch.sigmoid(theta @ features.T)
    gradient = (total * q - counts[..., 1]) @ features
    information = torch.einsum("rz,zd,zf->rdf", total * q * (1 - q), features, features)
    for view, pairs, belief, lam in restrictions:
        one = by_view(belief * q, view)
        slope = by_view((belief * q * (1 - q)).unsqueeze(1) * features.T, view)  # (R, d, G)
        # a short context that nothing was seen of has neither pairs nor belief
        one = one.clamp(1e-200, 1 - 1e-15)
        by_one = pairs[..., 0] / (1 - one) - pairs[..., 1] / one
        gradient = gradient + lam * torch.einsum("rs,rds->rd", by_one, slope)
        weight = pairs.sum(-1) / (one * (1 - one))
        information = information + lam * torch.einsum("rs,rds,rfs->rdf", weight, slope, slope)
    return gradient, information


def hessian(
    features: Tensor, counts: Tensor, restrictions: Sequence[Restriction], theta: Tensor
) -> Tensor:
    """(R, d, d) second derivatives of :func:`value`, which away from the truth are not the
    information; by automatic differentiation of :func:`derivatives`.
    """
    theta = theta.detach().requires_grad_()
    gradient, _ = derivatives(features, counts, restrictions, theta)
    rows = [
        torch.autograd.grad(slope.sum(), theta, retain_graph=True)[0]
        for slope in gradient.unbind(1)
    ]
    return torch.stack(rows, 1)


def fit(
    features: Tensor, counts: Tensor, restrictions: Sequence[Restriction] = (), steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Minimise -Σ counts log Q - Σ_k λ_k Σ pairs_k log Q̂_k by Fisher scoring with step halving, R
    fits at once.

    Args:
        features: (Z, d).
        counts: (R, Z, 2) weights of the full data, shares of 1; completed or noised counts will do
        as well.
        restrictions: IMM terms.
        steps: the most iterations.

    Returns:
        (R, d) parameters, and (R,) whether a minimum was found; separable data have none.

    Raises:
        ValueError: λ < 0.
    """
    for restriction in restrictions:
        checks.number("lam", restriction.lam, 0)
    # 0 times what separable data send to infinity is NaN
    restrictions = [r for r in restrictions if r.lam > 0]
    theta = counts.new_zeros(len(counts), features.shape[-1])
    for _ in range(steps):
        gradient, information = derivatives(features, counts, restrictions, theta)
        done = gradient.abs().amax(1) < 1e-10
        # far out the data are separable: the minimum lies at infinity
        if (done | (theta.abs().amax(1) > FAR)).all():
            break
        ridge = 1e-12 * torch.eye(theta.shape[1], dtype=theta.dtype, device=theta.device)
        step = torch.linalg.solve(information + ridge, gradient)
        before = value(features, counts, restrictions, theta)
        size = theta.new_ones(len(theta))
        for _ in range(30):
            tried = value(features, counts, restrictions, theta - size.unsqueeze(1) * step)
            worse = ~(tried <= before + 1e-14)
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        theta = theta - size.unsqueeze(1) * step
    return theta, done & (theta.abs().amax(1) <= FAR)


def complete(features: Tensor, theta: Tensor, restriction: Restriction) -> Tensor:
    """EM's expectation: the weights of (s, y) pairs shared out over cells by their
    responsibilities, (R, Z, 2).

    r(cell|s,y) = π(cell|s) Q(y|cell) / Q̂(y|s), the frozen ratio of serialized IMM. The
    maximisation is :func:`fit` on the full counts plus λ times these.
    """
    q, view = torch.sigmoid(theta @ features.T), restriction.view
    joint = (restriction.belief * torch.stack([1 - q, q])).movedim(0, -2)  # (R, 2, Z)
    return (restriction.pairs.mT[..., view] * share(joint, view)).mT
