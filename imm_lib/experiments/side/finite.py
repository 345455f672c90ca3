"""Logistic regression on a finite world: many data sets of one size, fitted together to convergence.

R data sets are counts, (R, S, E, 2), and the R fits are one tensor program in float64. Everything has a closed form but
the fit itself, so that simulation can be held against theory to its own error.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.contexts import BeliefContexts
from imm_lib.worth import Worth, measure

FAR = 20.0
"""A logit's parameter beyond which a fit counts as at infinity."""


@dataclass(frozen=True)
class LogitWorld:
    """P(y = 1 | s, e) = σ(features · theta) on S short and E extended contexts; float64.

    Attributes:
        features: (S, E, d).
        pi: (S, E) probabilities of the contexts.
        theta: (d,) the true parameters.
    """

    features: Tensor
    pi: Tensor
    theta: Tensor

    @classmethod
    def draw(cls, seed: int = 0, short: int = 4, extended: int = 6, strength: float = 1.0) -> "LogitWorld":
        """A world with a bias, a feature of s and two of e, which depend on s a little; ``strength`` scales theta."""
        generator = torch.Generator().manual_seed(seed)
        features = torch.ones(short, extended, 4, dtype=torch.float64)
        features[..., 1] = torch.linspace(-1, 1, short, dtype=torch.float64).unsqueeze(1)
        features[..., 2:] = torch.randn(extended, 2, generator=generator, dtype=torch.float64)
        pi = torch.rand(short, extended, generator=generator, dtype=torch.float64) + 0.3
        theta = strength * torch.tensor([0.3, 1.0, -1.0, 0.7], dtype=torch.float64)
        return cls(features, pi / pi.sum(), theta)

    @property
    def belief(self) -> Tensor:
        """(S, E) π(e|s)."""
        return self.pi / self.pi.sum(1, keepdim=True)

    def probability(self, theta: Tensor) -> Tensor:
        """(..., d) -> (..., S, E) Q(1|s,e)."""
        return torch.sigmoid(torch.einsum("sed,...d->...se", self.features, theta))

    @property
    def target(self) -> Tensor:
        """(S, 2) the true induced model P̄(y|s)."""
        one = (self.belief * self.probability(self.theta)).sum(1)
        return torch.stack([1 - one, one], 1)

    def sample(self, n: int, runs: int, generator: torch.Generator) -> Tensor:
        """(R, S, E, 2) shares of the n points of each of R data sets."""
        p = self.probability(self.theta)
        joint = (self.pi.unsqueeze(2) * torch.stack([1 - p, p], 2)).flatten()
        drawn = torch.multinomial(joint, checks.count("runs", runs) * checks.count("n", n), True, generator=generator)
        counts = torch.zeros(runs, len(joint), dtype=torch.float64)
        counts.scatter_add_(1, drawn.view(runs, n), torch.ones(runs, n, dtype=torch.float64))
        return counts.view(runs, *p.shape, 2) / n

    def excess(self, theta: Tensor) -> Tensor:
        """(R, d) -> (R,) Σ π KL(P(·|s,e) ‖ Q(·|s,e)) in nats."""
        p, logit = self.probability(self.theta), torch.einsum("sed,...d->...se", self.features, theta)
        entropy = torch.special.entr(p) + torch.special.entr(1 - p)
        cross = torch.nn.functional.softplus(logit) - p * logit
        return (self.pi * (cross - entropy)).sum((-2, -1))

    def worth(self) -> Worth:
        """What IMM is worth here, at the true parameters and the true π; by automatic differentiation."""
        theta = self.theta.clone().requires_grad_()

        def query(short: Tensor, extended: Tensor) -> Tensor:
            logit = self.features[short, extended] @ theta
            return torch.stack([torch.zeros_like(logit), logit], 1).log_softmax(1)

        short, extended = torch.cartesian_prod(*(torch.arange(size) for size in self.pi.shape)).T
        return measure(query, [theta], BeliefContexts(self.belief), short, extended, self.pi.flatten())


def fit(
    features: Tensor,
    counts: Tensor,
    pairs: Tensor | None = None,
    belief: Tensor | None = None,
    lam: float = 0.0,
    steps: int = 100,
) -> tuple[Tensor, Tensor]:
    """Minimise -Σ counts log Q - λ Σ pairs log Q̂ by Fisher scoring with step halving, R fits at once.

    Args:
        features: (S, E, d).
        counts: (R, S, E, 2) weights of the full data, shares of 1; completed or noised counts will do as well.
        pairs: (R, S, 2) weights of (s, y) pairs in the IMM term, shares of 1.
        belief: (S, E) or (R, S, E), π(e|s) of the induced model.
        lam: λ.
        steps: the most iterations.

    Returns:
        (R, d) parameters, and (R,) whether a minimum was found; separable data have none.

    Raises:
        ValueError: λ < 0, or λ > 0 without pairs and belief.
    """
    lam = checks.number("lam", lam, 0)
    if lam > 0 and (pairs is None or belief is None):
        raise ValueError("pairs and belief must be given where lam > 0")
    total, ones = counts.sum(-1), counts[..., 1]
    theta = counts.new_zeros(len(counts), features.shape[-1])

    def value(theta: Tensor) -> Tensor:
        logit = torch.einsum("sed,rd->rse", features, theta)
        found = (total * torch.nn.functional.softplus(logit) - ones * logit).sum((1, 2))
        if lam > 0:
            one = (belief * torch.sigmoid(logit)).sum(-1)
            found = found - lam * (torch.xlogy(pairs[..., 1], one) + torch.xlogy(pairs[..., 0], 1 - one)).sum(-1)
        return found

    for _ in range(steps):
        q = torch.sigmoid(torch.einsum("sed,rd->rse", features, theta))
        gradient = torch.einsum("rse,sed->rd", total * q - ones, features)
        information = torch.einsum("rse,sed,sef->rdf", total * q * (1 - q), features, features)
        if lam > 0:
            one = (belief * q).sum(-1)
            slope = torch.einsum("rse,sed->rsd", belief * q * (1 - q), features)
            by_one = pairs[..., 0] / (1 - one) - pairs[..., 1] / one
            gradient = gradient + lam * torch.einsum("rs,rsd->rd", by_one, slope)
            weight = pairs.sum(-1) / (one * (1 - one))
            information = information + lam * torch.einsum("rs,rsd,rsf->rdf", weight, slope, slope)
        done = gradient.abs().amax(1) < 1e-10
        # far out the data are separable: the minimum lies at infinity
        if (done | (theta.abs().amax(1) > FAR)).all():
            break
        ridge = 1e-12 * torch.eye(theta.shape[1], dtype=theta.dtype)
        step = torch.linalg.solve(information + ridge, gradient)
        before, size = value(theta), torch.ones(len(theta), dtype=theta.dtype)
        for _ in range(30):
            worse = ~(value(theta - size.unsqueeze(1) * step) <= before + 1e-14)
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        theta = theta - size.unsqueeze(1) * step
    return theta, done & (theta.abs().amax(1) <= FAR)


def complete(features: Tensor, theta: Tensor, pairs: Tensor, belief: Tensor) -> Tensor:
    """EM's expectation: the weights of (s, y) pairs shared out over extended contexts by their responsibilities.

    r(e|s,y) = π(e|s) Q(y|s,e) / Q̂(y|s), the frozen ratio of serialized IMM. (R, S, 2) -> (R, S, E, 2); its maximisation
    is :func:`fit` on the full counts plus λ times these.
    """
    q = torch.sigmoid(torch.einsum("sed,rd->rse", features, theta))
    joint = belief.unsqueeze(-1) * torch.stack([1 - q, q], -1)
    return pairs.unsqueeze(2) * joint / joint.sum(2, keepdim=True)
