"""Real-valued targets: a restricted regressor m(s), matched by the induced mean E_e f(s, e).

The squared error between the two is consistent for the same reason as the IMM risk: at the true f
the induced mean is E[y | s]. With D outputs, moments match as well: let f give (y, y²) and m the
mean and the second moment. Risks are half the squared error, the negative log-likelihood of a
normal law of variance 1 up to a constant; so λ weighs as it does for labels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.contexts import Contexts
from imm_lib.estimators import Drawing, Estimator, distinct
from imm_lib.induced import fits
from imm_lib.segments import groups
from imm_lib.sums import add_rows, once
from imm_lib.tables import RunningTable, check_visited
from imm_lib.targets.table import MeanTarget
from imm_lib.worth import Worth

Regressor = Callable[[Tensor], Tensor]
"""(B,) or (B, c) short contexts -> (B, D) means."""

MeanQuery = Callable[[Tensor, Tensor], Tensor]
"""(N,) or (N, c) short contexts, (N,) extended contexts -> (N, D) values of the full model."""


def induced_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean over extended contexts: (..., k, D) values -> (..., D).

    Args:
        values: of the full model in k extended contexts.
        weight: (..., k) probabilities π(e|s); uniform by default.

    Raises:
        TypeError, ValueError: values that are no floating-point tensor or not finite, or weights
            that do not fit.

    >>> induced_mean(torch.tensor([[1.0], [3.0]]), torch.tensor([0.75, 0.25]))
    tensor([1.5000])
    """
    values = checks.values("values", values, ..., "k", "D")
    if weight is None:
        return values.mean(-2)
    distributions.probabilities(
        "weight", weight, ..., values.shape[-2], why=" for (..., k, D) values"
    )
    checks.same_device("weight", weight, "values", values)
    fits("weight", weight, weight.shape[:-1], "values", values)
    return (weight.to(values.dtype).unsqueeze(-1) * values).sum(-2)


def _answer(query: MeanQuery, short: Tensor, extended: Tensor, width: int) -> Tensor:
    name, found = "query(short, extended)", checks.answer(query, short, extended)
    why = f", with the target's D outputs{checks.column(found)}"
    values = checks.values(name, found, len(extended), width, why=why)
    checks.same_device(name, values, "short", short)
    return values


def _squared(target: Tensor, mean: Tensor) -> Tensor:
    """Half the squared error, (..., D), (..., D) -> (...): what means have for a divergence."""
    return (target - mean).square().sum(-1) / 2


class ExactMean(Estimator):
    """mean_s ½ |m(s) - Σ_e π(e|s) f(s, e)|², by running the full model in every extended context.

    Args:
        target: (S, D) table, or callable short -> (B, D), of the restricted regressor's means.
        contexts: one of the context classes.

    A call ``(query, short)`` returns one scalar to differentiate; ``.risk`` holds it detached.

    Raises:
        TypeError, ValueError: a bad target, contexts, batch or answer of ``query``.

    >>> from imm_lib import BeliefContexts
    >>> values = torch.tensor([[1.0], [3.0]])
    >>> exact = ExactMean(torch.tensor([[2.5]]), BeliefContexts(torch.tensor([[0.5, 0.5]])))
    >>> exact(lambda short, extended: values[extended], torch.tensor([0]))
    tensor(0.1250)
    """

    _as_target = MeanTarget

    def __init__(self, target: Regressor | Tensor, contexts: Contexts):
        super().__init__(target, contexts, _squared)

    def forward(self, query: MeanQuery, short: Tensor) -> Tensor:
        """Mean risk over a batch of (B,) or (B, c) short contexts."""
        short, count, total = distinct(short)
        rows = self.target(short)
        row, extended, log_w = self.contexts.support(short)
        values = _answer(query, short[row], extended, rows.shape[1])
        weighted = values * log_w.exp().to(values.dtype).unsqueeze(1)
        induced = add_rows(values.new_zeros(rows.shape), row, weighted)
        return self.mean(self.divergence(rows.to(induced), induced), count, total)


class SampledMean(Drawing):
    """The same from k extended contexts per short one, without bias: the square of a mean of k is
    too large by their variance over k, which is taken off. A single call may be negative.

    Args:
        target, contexts: as of :class:`ExactMean`.
        k: extended contexts drawn per distinct short context, at least 2.
        generator: source of the samples; torch's default generator by default.

    Raises:
        TypeError, ValueError: a bad target, contexts, k, batch or answer of ``query``.
    """

    _as_target = MeanTarget

    def __init__(
        self,
        target: Regressor | Tensor,
        contexts: Contexts,
        k: int = 10,
        generator: torch.Generator | None = None,
    ):
        if checks.count("k", k) < 2:
            raise ValueError(f"k must be at least 2, as a variance is estimated, got {k}")
        super().__init__(target, contexts, k, generator, _squared)

    def forward(self, query: MeanQuery, short: Tensor) -> Tensor:
        """Mean risk over a batch of (B,) or (B, c) short contexts."""
        short, rows, extended, count, total = self.draw(short)
        asked = short.repeat_interleave(self.k, dim=0)
        values = _answer(query, asked, extended.flatten(), rows.shape[1]).unflatten(0, (-1, self.k))
        risk = self.divergence(rows.to(values), values.mean(1))
        return self.mean(risk - values.var(1).sum(1) / (2 * self.k), count, total)


class MovingAverageMean(RunningTable):
    """A surrogate whose gradient is the risk's, against a running table of the induced means.

    In train mode a call first moves the rows of the batch's short contexts by ``momentum`` towards
    the batch's own means, a first visit setting them. In eval mode the table stands still.

    Args:
        target: as of :class:`ExactMean`.
        num_short: number S of short contexts.
        outputs: D.
        momentum: weight of the new value, in (0, 1].

    Buffers, in ``state_dict``: ``table`` (S, D) and ``visited`` (S,).

    Raises:
        TypeError, ValueError: a bad target, size, momentum, batch, or a short context never visited
            in train mode.

    >>> average = MovingAverageMean(torch.tensor([[2.5]]), num_short=1, outputs=1)
    >>> values = torch.tensor([[1.0], [3.0]], requires_grad=True)
    >>> average(values, torch.tensor([0, 0])).backward()
    >>> values.grad.squeeze(1)                      # (2 - 2.5) / 2 each
    tensor([-0.2500, -0.2500])
    """

    def __init__(
        self, target: Regressor | Tensor, num_short: int, outputs: int = 1, momentum: float = 0.1
    ):
        super().__init__()
        self.num_short = checks.count("num_short", num_short)
        self.target, self.risk = MeanTarget(target, self), None
        self.momentum = checks.number("momentum", momentum, 0, 1, open_low=True)
        shape = num_short, checks.count("outputs", outputs)
        self.make_table(shape, num_short)

    def forward(self, values: Tensor, short: Tensor) -> Tensor:
        """(B, D) values of the full model at data points with the (B,) short contexts -> scalar."""
        short = checks.ids("short", short, len(self.table), ("the table", self.table))
        values = checks.values("values", values, len(short), self.table.shape[1])
        checks.same_device("values", values, "the table", self.table)
        rows = self.target(short).to(values)
        checks.shaped("target(short)", rows, *values.shape, why=" as values have outputs")
        if self.moves(values):
            self._move(values.detach().to(self.table.dtype), short)
        else:
            check_visited(self.visited, short, "in train mode")
        error = self.table[short].to(values) - rows
        self.risk = checks.lasting(error.square().sum(1).mean() / 2)
        return once((error * values).sum(1).mean())

    @torch.no_grad()
    def _move(self, values: Tensor, short: Tensor) -> None:
        found = groups(short)
        total = add_rows(values.new_zeros(len(found.short), values.shape[1]), found.inverse, values)
        fresh = total / found.members.clamp(min=1).unsqueeze(1)
        visited = self.visited[found.short].unsqueeze(1)
        moved = torch.lerp(self.table[found.short], fresh, self.momentum)
        found.write(self.table, torch.where(visited, moved, fresh))
        found.write(self.visited, torch.ones_like(found.short, dtype=torch.bool))


def linear_worth(inputs: Tensor, averaged: Tensor, theta: Tensor, noise: float) -> Worth:
    """What matching E[y | s] is worth to a linear regression, in closed form; see
    :mod:`imm_lib.worth`.

    I = E x xᵀ / σ², J = E x̄ x̄ᵀ / σ² and K = E (θᵀ(x - x̄))² x̄ x̄ᵀ / σ⁴, with x̄ = E[x | s].
    Excess risks are half the squared errors in units of σ². λ weighs ½ (m - θᵀx̄)² beside
    ½ (y - θᵀx)².

    Args:
        inputs: (N, d) x of a sample of the population.
        averaged: (N, d) x̄ at its short contexts.
        theta: (d,) the true coefficients.
        noise: σ, of y about θᵀx, above 0.

    Raises:
        TypeError, ValueError: shapes that do not fit, or a noise of 0 or less.
    """
    variance = checks.number("noise", noise, 0, open_low=True) ** 2
    checks.values("inputs", inputs, "N", "d")
    checks.values("averaged", averaged, *inputs.shape)
    checks.values("theta", theta, inputs.shape[1])
    checks.same_device("averaged", averaged, "inputs", inputs)
    checks.same_device("theta", theta, "inputs", inputs)
    inputs = checks.double("inputs", inputs)
    averaged, theta = averaged.double(), theta.double()
    hidden = (inputs - averaged) @ theta

    def moment(rows: Tensor) -> Tensor:
        return rows.T @ rows / len(rows)

    return Worth.of(
        moment(inputs) / variance,
        moment(averaged) / variance,
        moment(averaged * hidden.unsqueeze(1)) / variance**2,
    )
