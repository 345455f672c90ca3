"""How much a restricted model is worth: the asymptotic excess risk of IMM, the best λ, and the data
it stands for.

Near a true parameter, with n data points, the estimator that minimises cross-entropy + λ · IMM has
the covariance (I + λJ)⁻¹ (I + λ² (K + (n/m) J)) (I + λJ)⁻¹ / n. Here I is the Fisher information of
the full model, J that of the induced model, K is the price of averaging over the data's own
extended contexts instead of the true π(e|s), and the last term that of a target which is itself a
table counted from m restricted samples; a target with fewer parameters than a table costs less. Its
excess risk, in nats, is half the trace of the product with I. In the basis that turns I into the
identity and J into a diagonal of *gains* j it is

    1/(2n) Σ_i (1 + λ² (κ_i + (n/m) j_i)) / (1 + λ j_i)²,

with κ the diagonal of K there. All that IMM can do for a model is in these two lists of d numbers.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.contexts import Contexts
from imm_lib.estimators import Query, checked_contexts
from imm_lib.information import damped, informations
from imm_lib.uses import Comparison, Expected, compare

__all__ = [
    "FEW",
    "Comparison",
    "Expected",
    "Worth",
    "compare",
    "informations",
    "measure",
    "suggest_lambda",
]

FEW = 3.0
"""Extended contexts of a short one, effectively, below which :func:`suggest_lambda` warns."""


@dataclass(frozen=True)
class Worth:
    """What the induced model's information is beside the full model's; see the module.

    Attributes:
        gain: (d,) j, information of the induced model in units of the full model's, from the
            largest down.
        price: (d,) κ, what averaging over sampled extended contexts costs in the same directions.
    """

    gain: Tensor
    price: Tensor

    def __post_init__(self):
        for name, value in (("gain", self.gain), ("price", self.price)):
            checks.finite(name, checks.floating(name, value, "d"))
        checks.shaped("price", self.price, len(self.gain), why=", as long as gain")

    @classmethod
    def of(
        cls, full: Tensor, induced: Tensor, context: Tensor | None = None, damping: float = 0.0
    ) -> "Worth":
        """From the matrices of :func:`informations`.

        Args:
            full: (d, d) I.
            induced: (d, d) J.
            context: (d, d) K; none means that π is known.
            damping: added to I's diagonal, as a share of its mean; for models with more parameters
                than the data determine.

        Raises:
            ValueError: matrices that do not fit, are not symmetric or not finite, a negative
                damping, or an I that is singular.

        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> Worth.of(eye, torch.diag(torch.tensor([0.5, 0.0], dtype=torch.float64))).gain.tolist()
        [0.5, 0.0]
        """
        named = {"full": full, "induced": induced} | (
            {} if context is None else {"context": context}
        )
        for name, value in named.items():
            checks.floating(name, value, "d", "d")
            checks.shaped(name, value, *full.shape, why=" like full")
            checks.same_device(name, checks.held(name, value), "full", full)
            rounding = 1e-6 * value.abs().max().item()
            if not value.isfinite().all() or not torch.allclose(
                value, value.T, rtol=1e-4, atol=rounding
            ):
                raise ValueError(
                    f"{name} must be finite and symmetric, got {checks.describe(value)} that is not"
                )
        _, values, vectors = damped(checks.double("full", full), damping)
        induced = checks.double("induced", induced)
        white = vectors / values.sqrt()
        gain, basis = torch.linalg.eigh(white.T @ induced @ white)
        if gain[0] < -1e-3 * max(1.0, gain[-1].item()):
            raise ValueError(
                f"induced must have no negative eigenvalue, got {gain[0]:.3g} in units of full's"
            )
        gain, basis = gain.flip(0).clamp(min=0), (white @ basis).flip(1)
        price = (
            torch.zeros_like(gain)
            if context is None
            else ((context.double() @ basis) * basis).sum(0)
        )
        return cls(gain, price.clamp(min=0))

    def excess_risk(
        self,
        lam: float,
        n: float,
        m: float = math.inf,
        known: bool = False,
        unlabelled: float = 0.0,
    ) -> float:
        """Asymptotic mean of KL(P ‖ Q) in nats at weight λ.

        Args:
            lam: λ, at least 0.
            n: data points.
            m: restricted samples that the target was estimated from; infinite for a perfect target.
            known: π(e|s) is known, and not taken from the points.
            unlabelled: points without a label, u, beside which π(e|s) is counted from n + u points:
                the price of counting is n / (n + u) of what it is without them.

        Raises:
            TypeError, ValueError: a number out of range.
        """
        lam = checks.number("lam", lam, 0)
        return self._terms(lam, *self._sizes(n, m), known, unlabelled).sum().item() / (2 * n)

    def effective_multiplier(
        self,
        lam: float,
        n: float,
        m: float = math.inf,
        known: bool = False,
        unlabelled: float = 0.0,
    ) -> float:
        """How many times the data plain training would need for the same excess risk; below 1 where
        IMM hurts.

        Arguments and errors as :meth:`excess_risk`.

        >>> worth = Worth(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
        >>> worth.effective_multiplier(lam=1.0, n=100)  # one direction of two costs a quarter
        1.6
        """
        return len(self.gain) / (2 * n * self.excess_risk(lam, n, m, known, unlabelled))

    def optimal_lambda(
        self, n: float, m: float = math.inf, known: bool = False, unlabelled: float = 0.0
    ) -> float:
        """The λ of the least excess risk; infinite where it falls for ever.

        With a known π it is m/n, the weight of maximum likelihood. Arguments and errors as
        :meth:`excess_risk`.

        >>> worth = Worth(torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.5]))
        >>> round(worth.optimal_lambda(n=100, m=50, known=True), 3)
        0.5
        """
        n, m = self._sizes(n, m)
        gain, cost = self.gain.double(), self._cost(n, m, known, unlabelled)
        useful = gain > gain.amax().clamp(min=0) * 1e-12
        if not useful.any():
            return 0.0
        # the derivative's terms (λ cost - gain) / (1 + λ gain)³ change sign one by one: the root
        # lies between
        ends = (gain[useful] / cost[useful]).log()
        if ends.isinf().all():
            return math.inf
        low, high = ends.min().item(), ends[ends.isfinite()].max().item()
        if ends.isinf().any():
            high += 20
        grid = torch.linspace(low, high, 2001, dtype=torch.float64, device=gain.device).exp()
        risk = ((1 + grid**2 * cost.unsqueeze(1)) / (1 + grid * gain.unsqueeze(1)) ** 2).sum(0)
        return grid[risk.argmin()].item()

    def _sizes(self, n: float, m: float) -> tuple[float, float]:
        return checks.number("n", n, 0, open_low=True), checks.limit("m", m, 0, open_low=True)

    def _cost(self, n: float, m: float, known: bool, unlabelled: float) -> Tensor:
        checks.flag("known", known)
        counted = n / (n + checks.number("unlabelled", unlabelled, 0))
        return (0.0 if known else counted) * self.price.double() + n / m * self.gain.double()

    def _terms(self, lam: float, n: float, m: float, known: bool, unlabelled: float) -> Tensor:
        cost = self._cost(n, m, known, unlabelled)
        share = 1 / (1 + lam * self.gain.double())
        # a direction without a price has none at any λ
        return share**2 + (cost * (lam * share) ** 2).masked_fill(cost == 0, 0.0)


def measure(
    query: Query,
    parameters: Iterable[Tensor],
    contexts: Contexts,
    short: Tensor,
    extended: Tensor,
    weight: Tensor | None = None,
    damping: float = 0.0,
) -> Worth:
    """What IMM is worth to a model on a sample: :meth:`Worth.of` the :func:`informations`, whose
    arguments these are.

    >>> from imm_lib import GroupedContexts
    >>> theta = torch.zeros(2, requires_grad=True)  # a logit per extended context, of two
    >>> pad = torch.nn.functional.pad
    >>> query = lambda short, extended: pad(theta[extended, None], (1, 0)).log_softmax(1)
    >>> short, extended = torch.tensor([0, 0]), torch.arange(2)
    >>> found = measure(query, [theta], GroupedContexts(short), short, extended)
    >>> found.gain.round(decimals=3)  # the mean of both is one direction whole, none of the other
    tensor([1., 0.], dtype=torch.float64)
    """
    return Worth.of(*informations(query, parameters, contexts, short, extended, weight), damping)


def suggest_lambda(
    query: Query,
    parameters: Iterable[Tensor],
    contexts: Contexts,
    short: Tensor,
    extended: Tensor,
    m: float = math.inf,
    damping: float = 1e-3,
    largest: float = 30.0,
) -> float:
    """λ without a search: the best one for a model that has been trained once, with λ = 1 or any
    other.

    The n points of the sample are taken for the training data, π(e|s) for counted from them. Train
    again from the start with what it returns. The book's chapter on choosing λ compares it with
    other rules. It warns where short contexts have fewer than FEW extended contexts on average (1 /
    Σ π(e|s)²), since the formula is blind to that.

    Args:
        query, parameters, contexts, short, extended: as of :func:`informations`, at the trained
            parameters. Of a network its last layer's parameters will do.
        m: restricted samples that the target was estimated from, if it is known; infinite for a
            perfect target.
        damping: as of :meth:`Worth.of`.
        largest: upper limit of the result.

    Raises:
        TypeError, ValueError: as of :func:`informations` and :meth:`Worth.of`, or ``largest`` out
            of range.

    >>> from imm_lib import GroupedContexts
    >>> theta = torch.zeros(4, requires_grad=True)
    >>> pad = torch.nn.functional.pad
    >>> query = lambda short, extended: pad(theta[extended, None], (1, 0)).log_softmax(1)
    >>> short, extended = torch.zeros(4, dtype=torch.long), torch.arange(4)
    >>> round(suggest_lambda(query, [theta], GroupedContexts(short), short, extended, m=12), 6)
    3.0
    """
    largest = checks.number("largest", largest, 0, open_low=True)
    row, _, log_w = checked_contexts(contexts).support(short)
    squares = torch.zeros(len(short), dtype=torch.float64).index_add_(
        0, row.cpu(), (2 * log_w.cpu().double()).exp()
    )
    if (neighbours := (1 / squares).mean().item()) < FEW:
        warnings.warn(
            f"contexts give a short context only {neighbours:.1f} extended contexts on average: "
            "what an average over so few costs is not seen, and λ comes out too large; use wider "
            "kernels or coarser short contexts",
            stacklevel=2,
        )
    worth = measure(query, parameters, contexts, short, extended, damping=damping)
    return min(worth.optimal_lambda(len(short), m), largest)
