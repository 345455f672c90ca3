"""Which use of a restricted model to expect most from: asymptotic risks of five, side by side.

Every use that trains minimises mean loss + λ · term + Σ decay (θ - c)² / (2n). Near the true θ* its
estimate is θ* - H⁻¹ (noise + β), with H = I + λA + decay / n, β the gradient of all but the loss at
θ*, and V / n the covariance of the noise; the excess risk in nats is

    ½ βᵀ H⁻¹ I H⁻¹ β + tr(H⁻¹ I H⁻¹ V) / (2n).

    use                    λA    β                                  V
    plain                  0     (decay / n) θ*                     I
    offset, share a        0     (decay / n) (θ* - a t)             I
    reverse distillation   λI    (decay / n) θ*, and see below      I + λ² C
    IMM                    λJ    λ b̄ + (decay / n) θ*               I + λ² K

C is the covariance over the data of Σ P̂ ∇log Q. b̄ = E Σ (P - P̂) ∇log Q̂ over restricted pairs
is the target's own error, and 0 for a right one. Reverse distillation tends to the mixture that
holds the share ρ = λ / (1 + λ) of the target, as far as the model can express it: its bias is the
mixture's, KL(P ‖ (1 - ρ) P + ρ P̂), times what the model's own directions hold of it, bᵀ I⁻¹ b over
E Σ (P̂ - P)² / P with b = E Σ (P - P̂) ∇log Q. An offset a · log P̂ in the logits moves the true
parameters by -a t, the projection of log P̂ on the model, and so the point to which the penalty
pulls; what the model cannot express of it is a bias in distribution. A mixture's risk is expanded
about the plain estimate. Where the plain fit stands for the truth, what that adds is taken off to
first order; with few data all of this is rough.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.contexts import Contexts
from imm_lib.estimators import Query, Target, checked_batch, induced_rows
from imm_lib.information import damped, informations, jacobian, scored
from imm_lib.segments import unique
from imm_lib.targets.table import as_target

USES = ("plain", "interpolation", "offset", "reverse distillation", "IMM")

SHARES = tuple(i / 20 for i in range(20))
"""Settings of every use that are looked at: shares of the target, λ / (1 + λ) of a term."""


@dataclass(frozen=True)
class Expected:
    """What to expect of one use.

    Attributes:
        use: one of USES.
        share: its best setting, ρ = λ / (1 + λ) of a term.
        risk: excess risk there, in nats.
        first: share of the draws in which this use had the least risk.
    """

    use: str
    share: float
    risk: float
    first: float


@dataclass(frozen=True)
class Bias:
    """A vector that was estimated: its mean and the covariance of that mean."""

    mean: Tensor  # (d,)
    covariance: Tensor  # (d, d)

    def square(self, matrix: Tensor, drawn: Tensor) -> Tensor:
        """(D,) unbiased βᵀ M β, at least 0, for (D, d) draws of β."""
        raw = torch.einsum("di,ij,dj->d", drawn, matrix, drawn)
        return (raw - (matrix * self.covariance).sum()).clamp(min=0)


@dataclass(frozen=True)
class Comparison:
    """The five uses at any size, from one plain fit; made by :func:`compare`.

    Attributes:
        n: the size that it was made at.
        informations: I, J and K, (d, d) each.
        decay: (d,) of the penalty.
        theta, direct, induced: θ, b and b̄ with their errors.
        spread: (d, d) C.
        towards: (d,) t.
        floor: what an offset of share 1 costs in distribution, in nats.
        q, rows: (n, Y) model and target at the data.
        slope: (n, Y, d) derivatives of q.
    """

    n: int
    informations: tuple[Tensor, Tensor, Tensor]
    decay: Tensor
    theta: Bias
    direct: Bias
    induced: Bias
    spread: Tensor
    towards: Tensor
    floor: float
    q: Tensor
    rows: Tensor
    slope: Tensor

    def risk(self, use: str, share: float, n: float | None = None) -> float:
        """Excess risk in nats of a use at a share of the target, for n data points.

        Raises:
            TypeError, ValueError: an unknown use, a share outside [0, 1), or n not above 0.
        """
        if use not in USES:
            raise ValueError(f"use must be one of {', '.join(USES)}, got {use!r}")
        if not 0 <= checks.number("share", share, 0, 1) < 1:
            raise ValueError(f"share must be in [0, 1), got {share}")
        n = checks.number("n", self.n if n is None else n, 0, open_low=True)
        return self._risk(use, share, n, self._centre()).item()

    def best(self, use: str, n: float | None = None) -> tuple[float, float]:
        """The best of SHARES and its risk."""
        shares = (0.0,) if use == "plain" else SHARES
        return min(((s, self.risk(use, s, n)) for s in shares), key=lambda found: found[1])

    def crossing(self, first: str, second: str, sizes: Sequence[float]) -> float:
        """The first of the sizes from which on ``second`` is no worse than ``first``; infinite if
        there is none.
        """
        better = [self.best(second, n)[1] <= self.best(first, n)[1] for n in sizes]
        from_on = [n for i, n in enumerate(sizes) if all(better[i:])]
        return from_on[0] if from_on else math.inf

    def expected(
        self, draws: int = 200, generator: torch.Generator | None = None
    ) -> list[Expected]:
        """All uses at this size, the least risk first; with the share of draws in which each was
        first.

        A draw takes θ, b and b̄ from normal distributions about their estimates, each use at its
        best setting in that draw.
        """
        drawn = self._draw(checks.count("draws", draws), checks.generator(generator))
        rows = []
        for use in USES:
            shares = (0.0,) if use == "plain" else SHARES
            rows.append(torch.stack([self._risk(use, s, self.n, drawn) for s in shares]).amin(0))
        first = torch.stack(rows).argmin(0)
        found = [
            Expected(use, *self.best(use), (first == i).double().mean().item())
            for i, use in enumerate(USES)
        ]
        return sorted(found, key=lambda each: each.risk)

    def _centre(self) -> dict[str, Tensor]:
        return {
            name: getattr(self, name).mean.unsqueeze(0) for name in ("theta", "direct", "induced")
        }

    def _draw(self, draws: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        found = {}
        for name in ("theta", "direct", "induced"):
            bias = getattr(self, name)
            values, vectors = torch.linalg.eigh(bias.covariance)
            noise = torch.randn(draws, len(values), generator=generator, dtype=torch.float64)
            found[name] = bias.mean + (noise * values.clamp(min=0).sqrt()) @ vectors.T
        return found

    def _risk(self, use: str, share: float, n: float, at: dict[str, Tensor]) -> Tensor:
        """(D,) risks for draws of the biases."""
        full, induced, context = self.informations
        pull = self.decay / n
        lam = share / (1 - share)
        hessian, noise = full + torch.diag(pull), full
        beta, error = pull * at["theta"], pull.unsqueeze(1) * self.theta.covariance * pull
        floor: float | Tensor = 0.0
        if use == "offset":
            beta = pull * (at["theta"] - share * self.towards)
            floor = share**2 * self.floor
        elif use == "reverse distillation":
            hessian, noise = hessian + lam * full, full + lam**2 * self.spread
            floor = self._distilled(share, at["direct"])
        elif use == "IMM":
            hessian, noise = hessian + lam * induced, full + lam**2 * context
            beta = beta + lam * at["induced"]
            error = error + lam**2 * self.induced.covariance
        inverse = torch.linalg.inv(hessian)
        core = inverse @ full @ inverse
        if use == "interpolation":
            return self._mixed(share, inverse, beta, n)
        bias = Bias(beta[0], error).square(core, beta)
        return floor + bias / 2 + (core * noise).sum() / (2 * n)

    def _apart(self, share: float) -> Tensor:
        """KL(P ‖ the mixture), from the fit in the place of P."""
        mixture = (1 - share) * self.q + share * self.rows
        apart = torch.xlogy(self.q, self.q / mixture.clamp(min=1e-300)).sum(1).mean()
        # the fit is farther from the target than the truth is, by its own variance
        variance = (self.theta.covariance * self.informations[0]).sum()
        return (apart - share**2 * variance / 2).clamp(min=0)

    def _distilled(self, share: float, drawn: Tensor) -> Tensor:
        """(D,) bias of reverse distillation: the mixture's, as far as the model can express it."""
        whole = ((self.rows - self.q).square() / self.q.clamp(min=1e-300)).sum(1).mean()
        own = self.direct.square(torch.linalg.inv(self.informations[0]), drawn)
        return self._apart(share) * (own / whole.clamp(min=1e-300)).clamp(max=1)

    def _mixed(self, share: float, inverse: Tensor, beta: Tensor, n: float) -> Tensor:
        """(D,) risks of a mixture with the plain estimate, expanded about it."""
        q, mixture = self.q, (1 - share) * self.q + share * self.rows
        ratio = q / mixture.clamp(min=1e-300)
        moved = -beta @ inverse  # (D, d) the plain estimate's mean error
        linear = -(1 - share) * torch.einsum("ny,nyi->i", ratio, self.slope) / len(q)
        weight = ratio / mixture.clamp(min=1e-300)
        curve = torch.einsum("ny,nyi,nyj->ij", weight, self.slope, self.slope) / len(q)
        variance = (curve * (inverse @ self.informations[0] @ inverse)).sum() / n
        square = torch.einsum("di,ij,dj->d", moved, curve, moved) + variance
        return self._apart(share) + moved @ linear + (1 - share) ** 2 * square / 2


def compare(
    query: Query,
    parameters: Iterable[Tensor],
    contexts: Contexts,
    short: Tensor,
    extended: Tensor,
    target: Target,
    pairs: tuple[Tensor, Tensor],
    decay: float | Tensor = 0.0,
    damping: float = 1e-3,
    n: int | None = None,
) -> Comparison:
    """What five uses of a restricted model promise, from a model that was trained plainly.

    The points of the sample are the training data. With few of them the order is rough, and not to
    be chosen by: on the book's tables of 20 to 200 cases the first use was within a standard error
    of the best in 24 % of the splits. A simple rule was in 57 %: interpolation where the target's
    loss is below the plainly trained model's on cases left out, else IMM at λ = 1. The chapter on
    what to use when has both.

    Args:
        query, parameters, contexts, short, extended: as of
            :func:`imm_lib.worth.informations`, at the plainly trained parameters. Of a
            network its last layer's parameters will do.
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        pairs: (N,) or (N, c) short contexts and (N,) labels of restricted pairs, at least two, on
            which the target was not fitted.
        decay: of the penalty decay / (2n) · |θ|² of the plain training: a number, or one for each
            parameter.
        damping: added to I's diagonal, as a share of its mean.
        n: training points, where the sample is a part of them.

    Raises:
        TypeError, ValueError: as of :func:`imm_lib.worth.informations`; a bad target, pairs, decay
            or n.

    >>> from imm_lib import GroupedContexts
    >>> theta = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)  # a logit per e
    >>> pad = torch.nn.functional.pad
    >>> query = lambda short, extended: pad(theta[extended, None], (1, 0)).log_softmax(1)
    >>> short, extended = torch.zeros(2, dtype=torch.long), torch.arange(2)
    >>> pairs = torch.zeros(100, dtype=torch.long), torch.arange(100) % 2
    >>> rows = torch.tensor([[0.5, 0.5]])
    >>> contexts = GroupedContexts(short)
    >>> found = compare(query, [theta], contexts, short, extended, rows, pairs, damping=0.0)
    >>> round(found.risk("plain", 0.0, n=100), 4)  # two parameters: 2 / (2 · 100)
    0.01
    >>> round(found.risk("IMM", 0.5, n=100), 4)  # their mean is nearly known, their difference not
    0.0064
    """
    parameters = checks.differentiable(parameters)
    target = as_target(target)
    matrices = informations(query, parameters, contexts, short, extended)
    short, extended = checked_batch(short), checks.ids("extended", extended)
    n, width = checks.count("n", len(short) if n is None else n), len(matrices[0])
    decay = torch.as_tensor(decay, dtype=torch.float64)
    if decay.shape not in ((), (width,)) or not (decay.isfinite() & (decay >= 0)).all():
        raise ValueError(
            f"decay must be at least 0, a number or ({width},), got {checks.describe(decay)}"
        )
    decay = decay.expand(width)
    log_q = scored(query, short, extended)
    rows = target(short).double()
    checks.shaped("target(short)", rows, *log_q.shape, why=" as the model has labels")
    score, q = jacobian(log_q, parameters), log_q.detach().double().exp()
    full, _, _ = damped(matrices[0], damping)
    decay = decay.to(full.device)
    hessian = full + torch.diag(decay / n)
    inverse = torch.linalg.inv(hessian)
    covariance = inverse @ matrices[0] @ inverse / n
    values = torch.cat([p.detach().reshape(-1).double() for p in parameters])
    pulled = torch.einsum("ny,nyi->ni", rows, score)
    log_p = rows.clamp(min=1e-12).log()
    towards = torch.linalg.solve(full, torch.einsum("ny,nyi,ny->i", q, score, log_p) / len(q))
    left = log_p - score @ towards
    left = left - (q * left).sum(1, keepdim=True)
    return Comparison(
        n=n,
        informations=(full, matrices[1], matrices[2]),
        decay=decay,
        theta=Bias(values, covariance),
        direct=Bias(-pulled.mean(0), full @ covariance @ full + _covariance(pulled) / n),
        induced=_target_error(query, parameters, contexts, target, pairs, rows.shape[1]),
        spread=_covariance(pulled),
        towards=towards,
        floor=((q * left.square()).sum(1).mean() / 2).item(),
        q=q,
        rows=rows,
        slope=q.unsqueeze(-1) * score,
    )


def _covariance(values: Tensor) -> Tensor:
    """(N, d) -> (d, d)."""
    centred = values - values.mean(0)
    return centred.T @ centred / len(values)


def _target_error(
    query: Query,
    parameters: list[Tensor],
    contexts: Contexts,
    target: Target,
    pairs: tuple[Tensor, Tensor],
    labels: int,
) -> Bias:
    """b̄ on restricted pairs."""
    if not isinstance(pairs, tuple | list) or len(pairs) != 2:
        raise TypeError(f"pairs must be (short, labels), got {checks.describe(pairs)}")
    short, label = pairs
    short = checks.held("pairs", checked_batch(short, "pairs"))
    if len(short) < 2:
        raise ValueError(f"pairs must hold at least two pairs, got {checks.describe(short)}")
    label = checks.ids("pairs' labels", label, labels)
    checks.shaped("pairs' labels", label, len(short), why=", as long as their short contexts")
    distinct, inverse, _ = unique(short)
    score = jacobian(induced_rows(query, contexts, distinct, labels), parameters)
    expected = torch.einsum("sy,syi->si", as_target(target)(distinct).double(), score)
    each = score[inverse, label] - expected[inverse]
    return Bias(each.mean(0), _covariance(each) / len(each))
