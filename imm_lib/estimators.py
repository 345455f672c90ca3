"""How the IMM risk and its gradient are estimated: exactly, by sampling, or against a running table of Q̂.

A call returns one scalar to differentiate, the mean over the batch in nats; add λ times it to the cross-entropy. After
each call ``.risk`` holds the detached risk to watch.

- ``ExactIMM`` and ``SampledIMM`` run the full model themselves: ``(query, short) -> scalar``, where ``query(short,
  extended)`` maps (N,) short contexts and (N,) extended contexts to the (N, Y) log-probabilities of the full model.
- ``SerializedIMM`` and ``MovingAverageIMM`` reuse the pass of the cross-entropy: they take its log-probabilities and
  return a *surrogate*, whose gradient estimates the risk's and whose value means nothing (eq. 13).
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from imm_lib import checks
from imm_lib.induced import accumulator, cross_entropy, imm_risk, segment_logsumexp
from imm_lib.sequential import sequential_risk
from imm_lib.targets.table import TableTarget, as_target

Query = Callable[[Tensor, Tensor], Tensor]
Target = Tensor | Callable[[Tensor], Tensor]


def _distinct(short: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct short contexts of a batch and how often each occurs."""
    if checks.tensor("short", short).dim() < 1 or len(short) == 0:
        raise ValueError(f"short must be a non-empty batch, got {checks.describe(short)}")
    return torch.unique(short, dim=None if short.dim() == 1 else 0, return_counts=True)


def _answer(query: Query, short: Tensor, extended: Tensor, labels: int) -> Tensor:
    """The answer of ``query``, checked to be (N, labels) log-probabilities."""
    log_q = checks.log_probabilities("query(short, extended)", query(short, extended), dim=2)
    if log_q.shape != (len(short), labels):
        raise ValueError(
            f"query(short, extended) must be (N, Y) = {(len(short), labels)}, with the target's Y labels, "
            f"got {checks.describe(log_q)}"
        )
    return log_q


class ExactIMM(nn.Module):
    """The empirical IMM risk (eqs. 7, 9): the full model is run in every extended context of the batch's short ones.

    Args:
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        contexts: one of the context classes.

    Raises:
        TypeError, ValueError: when built, for a bad target; when called, for a bad batch or answer of ``query``.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()      # Q(y|e): two extended contexts, two labels
    >>> from imm_lib import BeliefContexts
    >>> exact = ExactIMM(torch.tensor([[0.7, 0.3]]), BeliefContexts(torch.tensor([[0.5, 0.5]])))
    >>> exact(lambda short, extended: log_q[extended], torch.tensor([0, 0]))
    tensor(0.6109)
    """

    def __init__(self, target: Target, contexts: nn.Module):
        super().__init__()
        self.target, self.contexts, self.risk = as_target(target), contexts, None

    def forward(self, query: Query, short: Tensor) -> Tensor:
        """Mean risk over the batch ``short`` (B,) or (B, d), in nats."""
        distinct, count = _distinct(short)
        row, extended, log_w = self.contexts.support(distinct)
        rows = self.target(distinct)
        log_q = accumulator(_answer(query, distinct[row], extended, rows.shape[1]))
        log_induced = segment_logsumexp(log_q + log_w.to(log_q.dtype).unsqueeze(1), row, len(distinct))
        mean = (count * cross_entropy(rows.to(log_q.dtype), log_induced)).sum() / len(short)
        self.risk = mean.detach()
        return mean


class SampledIMM(nn.Module):
    """The IMM risk with k sampled extended contexts per short context (eqs. 11, 12; Algorithm 1).

    Equal short contexts in a batch share their k samples and are weighted by their count: the expectation is unchanged
    and the cost falls. The risk itself is biased upwards by about Var/(2k), as the logarithm is taken of a mean.

    Args:
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        contexts: one of the context classes.
        k: extended contexts drawn per distinct short context.
        sequential: run the k contexts one after another, so that the memory for activations does not grow with k, at
            the price of a second forward pass (Appendix C.2). Dropout masks are replayed. Its ``query`` is called with
            one extended context per distinct short context at a time.
        generator: source of the samples; torch's default generator by default.

    Raises:
        TypeError, ValueError: when built, for a bad target or k; when called, for a bad batch or answer of ``query``.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    >>> from imm_lib import BeliefContexts
    >>> contexts = BeliefContexts(torch.tensor([[0.5, 0.5]]))
    >>> sampled = SampledIMM(torch.tensor([[0.7, 0.3]]), contexts, k=1000, generator=torch.Generator().manual_seed(0))
    >>> round(sampled(lambda short, extended: log_q[extended], torch.tensor([0])).item(), 2)
    0.61
    """

    _joint_risk = staticmethod(imm_risk)

    def __init__(
        self,
        target: Target,
        contexts: nn.Module,
        k: int = 10,
        sequential: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.k = checks.count("k", k)
        self.target, self.contexts, self.risk = as_target(target), contexts, None
        self.sequential, self.generator = sequential, generator

    def forward(self, query: Query, short: Tensor) -> Tensor:
        """Mean risk over the batch ``short`` (B,) or (B, d), in nats."""
        distinct, count = _distinct(short)
        extended = self.contexts.sample(distinct, self.k, self.generator)
        rows = self.target(distinct)
        risk = (self._sequential if self.sequential else self._joint)(query, distinct, extended, rows)
        mean = (count * risk).sum() / len(short)
        self.risk = mean.detach()
        return mean

    def _joint(self, query: Query, short: Tensor, extended: Tensor, rows: Tensor) -> Tensor:
        log_q = _answer(query, short.repeat_interleave(self.k, dim=0), extended.flatten(), rows.shape[1])
        return self._joint_risk(rows, log_q.unflatten(0, (-1, self.k)))

    def _sequential(self, query: Query, short: Tensor, extended: Tensor, rows: Tensor) -> Tensor:
        passes = [partial(_answer, query, short, column, rows.shape[1]) for column in extended.unbind(1)]
        return sequential_risk(rows, passes)


def _check_sizes(module: nn.Module, state: dict, prefix: str, *_: object) -> None:
    """Refuse a state_dict of another size before anything of it is loaded."""
    for name in ("table", "visited"):
        came = state.get(prefix + name)
        if came is not None and came.shape != getattr(module, name).shape:
            raise ValueError(
                f"state_dict[{prefix + name!r}] must be {tuple(getattr(module, name).shape)}, got {tuple(came.shape)}"
            )


class _TableIMM(nn.Module):
    """A table of log Q̂(y|s) that outlives the batch, and the corrected cross-entropy of eq. 13 against it."""

    def __init__(self, target: Target, num_short: int, num_labels: int):
        super().__init__()
        self.target, self.risk = as_target(target), None
        shape = checks.count("num_short", num_short), checks.count("num_labels", num_labels)
        if isinstance(self.target, TableTarget) and self.target.table.shape != shape:
            raise ValueError(f"target must be (num_short, num_labels) = {shape}, got {tuple(self.target.table.shape)}")
        # NaN, so that a row used before its first visit shows instead of passing for a probability
        self.register_buffer("table", torch.full(shape, math.nan))
        self.register_buffer("visited", torch.zeros(num_short, dtype=torch.bool))
        self.register_load_state_dict_pre_hook(_check_sizes)

    def _batch(self, log_q: Tensor, short: Tensor, name: str = "log_q") -> tuple[Tensor, Tensor]:
        """Checked (B, Y) log_q and (B,) short."""
        short = checks.ids("short", short, len(self.table))
        log_q = checks.log_probabilities(name, log_q, dim=2)
        if log_q.shape != (len(short), self.table.shape[1]):
            raise ValueError(f"{name} must be {(len(short), self.table.shape[1])}, got {checks.describe(log_q)}")
        checks.same_device(name, log_q, "the table", self.table)
        checks.same_device("short", short, "the table", self.table)
        return log_q, short

    def _rows(self, short: Tensor) -> Tensor:
        """Checked (B, Y) rows of the target."""
        rows = self.target(short)
        if rows.shape[1] != self.table.shape[1]:
            raise ValueError(f"target must have num_labels = {self.table.shape[1]} labels, got {checks.describe(rows)}")
        return rows

    def _surrogate(self, rows: Tensor, log_q: Tensor, log_frozen: Tensor, short: Tensor, max_ratio: float) -> Tensor:
        """-mean_t sum_y ratio_t(y) P̂(y|s_t) log Q(y|s_t,e_t), with the constant ratio = exp(log_frozen - table)."""
        log_q, log_frozen = accumulator(log_q), accumulator(log_frozen.detach())
        log_induced, rows = self.table[short], rows.to(log_q.dtype)
        self.risk = cross_entropy(rows, log_induced).mean()
        weight = rows * (log_frozen - log_induced).exp().clamp(max=max_ratio)
        # a label without target probability weighs nothing, and one that Q rules out has no gradient to give
        weight = weight.masked_fill((rows == 0) | (log_frozen == -math.inf), 0.0)
        return cross_entropy(weight, log_q).mean()


class SerializedIMM(_TableIMM):
    """Serialized IMM: the corrected cross-entropy of eq. 13 with a periodically refreshed Q̂† (Algorithm 2).

    Between two refreshes the correction Q†/Q̂† is frozen: both sides belong to the model Q† of the last refresh. Each
    period then minimises a majoriser of the risk (a generalised EM step), which is why the stale ratio is safe and the
    current Q over a stale table is not.

    Args:
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        num_short: number S of short contexts.
        num_labels: number Y of labels.

    Buffers, in ``state_dict``: ``table`` (S, Y), log Q̂†; ``visited`` (S,), the short contexts of the last refresh.

    Raises:
        TypeError, ValueError: when built, for sizes that do not fit the target; when called, for bad log-probabilities,
            ids or devices, or a short context that no refresh has seen; on load, for a state of another size.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()       # two data points of one short context
    >>> short = torch.tensor([0, 0])
    >>> serialized = SerializedIMM(torch.tensor([[0.7, 0.3]]), num_short=1, num_labels=2)
    >>> serialized.refresh([(log_q, short)])
    >>> surrogate = serialized(log_q, short, log_q_frozen=log_q)
    >>> serialized.risk
    tensor(0.6109)
    """

    @torch.no_grad()
    def refresh(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Rebuild log Q̂† by one sweep over the data: the mean of Q† over each short context's data points (eq. 6).

        Args:
            batches: pairs of (B, Y) log-probabilities of Q† and (B,) short contexts, together the whole data set.

        Raises:
            TypeError, ValueError: for a bad or empty sweep; the table is then what it was.
        """
        total = torch.full_like(self.table, -math.inf)
        count = torch.zeros_like(self.visited, dtype=torch.long)
        for log_q, short in batches:
            log_q, short = self._batch(log_q, short)
            distinct, inverse = torch.unique(short, return_inverse=True)
            batch_sum = segment_logsumexp(accumulator(log_q).to(total.dtype), inverse, len(distinct))
            total[distinct] = torch.logaddexp(total[distinct], batch_sum)
            count += torch.bincount(short, minlength=len(count))
        if not count.any():
            raise ValueError("batches must hold at least one (log_q, short) pair, got none")
        self.visited.copy_(count > 0)
        self.table.copy_(
            torch.where(self.visited.unsqueeze(1), total - count.to(total.dtype).log().unsqueeze(1), math.nan)
        )

    def forward(self, log_q: Tensor, short: Tensor, log_q_frozen: Tensor) -> Tensor:
        """The surrogate of eq. 13, a mean over the batch.

        Args:
            log_q: (B, Y) log-probabilities of the current model, to differentiate.
            short: (B,) short contexts.
            log_q_frozen: (B, Y) log-probabilities of Q†, the model of the last refresh, at the same data points.
        """
        log_q, short = self._batch(log_q, short)
        log_q_frozen, _ = self._batch(log_q_frozen, short, "log_q_frozen")
        if checks.visible(short) and not self.visited[short].all():
            unseen = short[~self.visited[short]][0].item()
            raise ValueError(f"short has a context that no refresh has seen: {unseen}; call .refresh(...) first")
        return self._surrogate(self._rows(short), log_q, log_q_frozen, short, math.inf)


class MovingAverageIMM(_TableIMM):
    """The correction of eq. 13 against a running average of Q̂, kept in log space: no refresh sweep, no second model.

    In train mode each call first moves the rows of the batch's short contexts, Q̂ <- (1 - momentum) Q̂ + momentum times
    the mean of the current Q over the batch, and then differentiates the corrected cross-entropy of the current Q. Data
    points that share a short context are averaged before the step, and the first visit of a row sets it. In eval mode
    the table stands still.

    Args:
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        num_short: number S of short contexts.
        num_labels: number Y of labels.
        momentum: weight of the new value, in (0, 1], as in BatchNorm; 1 keeps no memory.
        max_ratio: upper limit of the correction Q/Q̂, a guard against rows that lag behind the model.

    Buffers, in ``state_dict``: ``table`` (S, Y), log Q̂; ``visited`` (S,), the short contexts met so far.

    Raises:
        TypeError, ValueError: when built, for momentum or max_ratio out of range, or sizes that do not fit the target;
            when called, for bad log-probabilities, ids or devices; on load, for a state of another size.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    >>> average = MovingAverageIMM(torch.tensor([[0.7, 0.3]]), num_short=1, num_labels=2)
    >>> surrogate = average(log_q, torch.tensor([0, 0]))
    >>> average.table.exp()
    tensor([[0.7000, 0.3000]])
    """

    def __init__(
        self,
        target: Target,
        num_short: int,
        num_labels: int,
        momentum: float = 0.1,
        max_ratio: float = math.inf,
    ):
        super().__init__(target, num_short, num_labels)
        self.momentum = checks.number("momentum", momentum, 0, 1, open_low=True)
        self.max_ratio = max_ratio if max_ratio == math.inf else checks.number("max_ratio", max_ratio, 1)

    def forward(self, log_q: Tensor, short: Tensor) -> Tensor:
        """The surrogate of eq. 13, a mean over the batch, from (B, Y) log-probabilities and (B,) short contexts."""
        log_q, short = self._batch(log_q, short)
        rows = self._rows(short)
        if self.training:
            self._update(accumulator(log_q.detach()), short)
        elif checks.visible(short) and not self.visited[short].all():
            unseen = short[~self.visited[short]][0].item()
            raise ValueError(f"short has a context that was never visited in train mode: {unseen}")
        return self._surrogate(rows, log_q, log_q, short, self.max_ratio)

    @torch.no_grad()
    def _update(self, log_q: Tensor, short: Tensor) -> None:
        distinct, inverse, count = torch.unique(short, return_inverse=True, return_counts=True)
        new = segment_logsumexp(log_q.to(self.table.dtype), inverse, len(distinct))
        new = new - count.to(new.dtype).log().unsqueeze(1)
        keep = math.log1p(-self.momentum) if self.momentum < 1 else -math.inf
        moved = torch.logaddexp(self.table[distinct] + keep, new + math.log(self.momentum))
        self.table[distinct] = torch.where(self.visited[distinct].unsqueeze(1), moved, new)
        self.visited[distinct] = True
