"""Estimators that run the full model themselves: the IMM risk, exactly or with sampled extended
contexts.

A call ``(query, short)`` returns one scalar to differentiate, the mean risk over the batch in nats;
add λ times it to the cross-entropy. ``query(short, extended)`` maps (N,) short contexts and (N,)
extended contexts to the (N, Y) log-probabilities of the full model. N counts pairs, not the batch:
every distinct short context with each of its extended contexts (``ExactIMM``) or with k of them
(``SampledIMM``). Extended contexts are indices of the points that the contexts were built from, so
``query`` looks them up in *all* of these points, whatever the batch is. After each call ``.risk``
holds the detached risk to watch.

The estimators that reuse the pass of the cross-entropy instead are in ``surrogates.py``.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from imm_lib import checks, distributed, distributions
from imm_lib.checks import accumulator
from imm_lib.contexts import Contexts
from imm_lib.distributed import Group, checked_group
from imm_lib.divergences import Divergence, as_divergence
from imm_lib.induced import cross_entropy
from imm_lib.segments import groups, unique
from imm_lib.sequential import sequential_risk
from imm_lib.sums import add_rows, log_sum_exp, segment_logsumexp
from imm_lib.targets.table import Target, as_target

Query = Callable[[Tensor, Tensor], Tensor]


def checked_contexts(contexts: Contexts) -> Contexts:
    """``contexts``, if it answers what estimators ask; raises TypeError."""
    asked = all(callable(getattr(contexts, name, None)) for name in ("support", "sample"))
    if isinstance(contexts, type) or not asked:
        raise TypeError(
            f"contexts must be one of the context classes, got {checks.describe(contexts)}"
        )
    return contexts


def checked_batch(short: Tensor, name: str = "short") -> Tensor:
    """``short``, if it is a non-empty batch of ids, which then are int64, or of real values. Raises
    TypeError or ValueError.
    """
    if checks.tensor(name, short).dim() < 1 or short.numel() == 0:
        raise ValueError(f"{name} must be a non-empty batch, got {checks.describe(short)}")
    real = short.dtype in checks.FLOATS or not (short.is_floating_point() or short.is_complex())
    if not real or short.dtype == torch.bool:
        raise TypeError(f"{name} must hold ids or real values, got {checks.describe(short)}")
    return short if short.is_floating_point() else short.long()


def distinct(
    short: Tensor, group: Group = None, weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | float]:
    """(D, ...) the short contexts of a batch that are run here, (D,) how many data points each
    stands for, or their weights together, and what the sum over them is divided by.

    Of the joint batch of a group, every rank runs its share.
    """
    joint, _ = distributed.gathered(checks.held("short", checked_batch(short)), group)
    values, inverse, counts = unique(joint)
    total: Tensor | float = float(len(joint))
    if weight is not None:
        weights, _ = distributed.gathered(distributions.point_weights(weight, short), group)
        counts = add_rows(weights.new_zeros(len(values)), inverse, weights)
        total = weights.sum()
        # what counts for nothing is not run: its risk may be infinite
        values, counts = values[counts > 0], counts[counts > 0]
    own, count = distributed.dealt(values, counts, group)
    return own, count, total / distributed.ranks(group)


def answer(query: Query, short: Tensor, extended: Tensor, labels: int | str = "Y") -> Tensor:
    """The answer of ``query``, checked to be (N, labels) log-probabilities."""
    name, found = "query(short, extended)", checks.answer(query, short, extended)
    why = checks.coarser(found, labels)
    log_q = distributions.log_distributions(name, found, len(short), labels, why=why)
    checks.same_device(name, log_q, "short", short)
    return log_q


def answers(query: Query, short: Tensor, extended: Tensor, labels: int) -> Tensor:
    """(D,) short contexts with (D, k) extended ones -> (D, k, Y) checked log-probabilities."""
    k = extended.shape[1]
    log_q = answer(query, short.repeat_interleave(k, dim=0), extended.flatten(), labels)
    return accumulator(log_q).unflatten(0, (-1, k))


def induced_rows(query: Query, contexts: Contexts, short: Tensor, labels: int) -> Tensor:
    """(B,) or (B, d) short contexts -> (B, Y) log Q̂(y|s), by running the full model in every
    extended context.
    """
    row, extended, log_w = contexts.support(short)
    log_q = accumulator(answer(query, short[row], extended, labels))
    return segment_logsumexp(log_q + log_w.to(log_q.dtype).unsqueeze(1), row, len(short))


class Estimator(nn.Module):
    """What matches a target by running the full model in extended contexts."""

    risk: Tensor | None
    _as_target: Callable[..., nn.Module] = staticmethod(as_target)

    def __init__(
        self,
        target: Target,
        contexts: Contexts,
        divergence: Divergence | str = cross_entropy,
        group: Group = None,
    ):
        super().__init__()
        self.divergence, self.group = as_divergence(divergence), checked_group(group)
        self.contexts, self.risk = checked_contexts(contexts), None
        self.target = self._as_target(target, contexts)

    def mean(self, risk: Tensor, count: Tensor, total: Tensor | float) -> Tensor:
        """Σ count · risk / total, which ``.risk`` then holds detached; what counts for nothing may
        be infinite.
        """
        count = count.to(risk.dtype)
        mean = ((count * risk.masked_fill(count == 0, 0.0)).sum() / total).to(risk.dtype)
        self.risk = distributed.mean(mean.detach(), self.group)
        return mean


class ExactIMM(Estimator):
    """The empirical IMM risk (eqs. 7, 9): the full model is run in every extended context of the
    batch's short ones.

    Args:
        target: (S, Y) table, or callable short -> (B, Y), of the restricted model's probabilities.
        contexts: one of the context classes.
        divergence: between target and induced model, a function or a name of
            :mod:`imm_lib.divergences`.
        group: ranks whose batches count as one (:mod:`imm_lib.distributed`), each with the contexts
            of all data points. Every distinct short context is run by one of them.

    Raises:
        TypeError, ValueError: when built, for a bad target or divergence; when called, for a bad
            batch or answer of ``query``.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()  # Q(y|e): two e, two labels
    >>> from imm_lib import BeliefContexts
    >>> exact = ExactIMM(torch.tensor([[0.7, 0.3]]), BeliefContexts(torch.tensor([[0.5, 0.5]])))
    >>> exact(lambda short, extended: log_q[extended], torch.tensor([0, 0]))
    tensor(0.6109)
    """

    def forward(self, query: Query, short: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean risk over the batch, in nats.

        Args:
            query: (N,) or (N, d) short contexts, (N,) extended contexts -> (N, Y) log-probabilities
                of the full model.
            short: (B,) or (B, d) short contexts of the batch.
            weight: (B,) weights of its data points, for instance how many rows each stands for: a
                data point of weight 2 counts as two of weight 1, of 0 as none. Equal by default.
        """
        asked, count, total = distinct(short, self.group, weight)
        rows = self.target(asked)
        log_induced = induced_rows(query, self.contexts, asked, rows.shape[1])
        risk = self.divergence(rows.to(log_induced.dtype), log_induced)
        return self.mean(risk, count, total)


class Drawing(Estimator):
    """An estimator that draws extended contexts; its generator, if it has one of its own, is in
    ``state_dict``.
    """

    begun: Tensor | None = None  # the state of its generator before the last draw

    def __init__(
        self,
        target: Target,
        contexts: Contexts,
        k: int,
        generator: torch.Generator | None = None,
        divergence: Divergence | str = cross_entropy,
        group: Group = None,
    ):
        super().__init__(target, contexts, divergence, group)
        self.k, self.generator = checks.count("k", k), checks.generator(generator)

    def draw(
        self, short: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | float]:
        """(D, ...) the short contexts of a batch that are run here, their (D, Y) targets, the
        (D, k) extended contexts that they draw, and as of :func:`distinct` (D,) counts and what
        their sum is divided by.

        Equal short contexts draw once, in the order of their values. As many rows are drawn as
        there are data points, whatever D is, so that a seed means the same on every device: where
        values may not be looked at, D is the size of the batch, and the rows left over count for
        nothing. In a group every rank draws for what it runs.
        """
        if self.group is not None:
            asked, count, total = distinct(short, self.group, weight)
            rows = self.target(asked)
            return asked, rows, self._sample(asked), count, total
        asked, inverse, count = groups(checked_batch(short))
        rows, total = self.target(asked), float(len(short))
        spare = asked[-1:].expand(len(short) - len(asked), *asked.shape[1:])
        extended = self._sample(torch.cat([asked, spare]))[: len(asked)]
        if weight is None:
            return asked, rows, extended, count, total
        weight = distributions.point_weights(weight, short)
        count = add_rows(torch.zeros_like(count, dtype=weight.dtype), inverse, weight)
        if checks.visible(count):  # what counts for nothing is not run: its risk may be infinite
            some = count > 0
            asked, rows, extended, count = asked[some], rows[some], extended[some], count[some]
        return asked, rows, extended, count, weight.sum()

    def _sample(self, short: Tensor) -> Tensor:
        """(B, k) extended contexts; at a checkpoint's second forward pass those of the last call,
        which torch sees to for its default generators alone.
        """
        if self.generator is None or torch.compiler.is_compiling():
            return self.contexts.sample(short, self.k, self.generator)
        now = self.generator.get_state()
        if again := checks.in_backward() and self.begun is not None:
            self.generator.set_state(self.begun)
        else:
            self.begun = now
        try:
            return self.contexts.sample(short, self.k, self.generator)
        finally:
            if again:
                self.generator.set_state(now)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.generator is not None:
            destination[prefix + "generator"] = self.generator.get_state()

    def _load_from_state_dict(
        self, state: dict, prefix: str, metadata: dict, strict: bool, missing: list, *rest: list
    ) -> None:
        if self.generator is not None and (found := state.get(prefix + "generator")) is not None:
            self.generator.set_state(checks.tensor("state_dict['generator']", found).cpu())
            state = {key: value for key, value in state.items() if key != prefix + "generator"}
        elif self.generator is not None:
            missing.append(prefix + "generator")
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, *rest)


class SampledIMM(Drawing):
    """The IMM risk with k sampled extended contexts per short context (eqs. 11, 12; Algorithm 1).

    Equal short contexts in a batch share their k samples and are weighted by their count: the
    expectation is unchanged and the cost falls. (Not on a GPU or in a compiled graph, where
    counting them would wait: there as many are run as there are data points, and those left over
    count for nothing.) The risk itself is biased upwards by about Var/(2k), as the logarithm is
    taken of a mean.

    Args:
        target, contexts, divergence, group: as of :class:`ExactIMM`.
        k: extended contexts drawn per distinct short context.
        sequential: run the k contexts one after another, so that the memory for activations does
            not grow with k, at the price of a second forward pass (Appendix C.2). Dropout masks are
            replayed if they come from torch's default generators; BatchNorm statistics are updated
            twice. Its ``query`` is called with one extended context per distinct short context at a
            time.
        generator: source of the samples; one on the CPU draws the same on every device. By default
            torch's of the device of ``short``. Its state is in ``state_dict``.

    Raises:
        TypeError, ValueError: when built, for a bad target, k or divergence; when called, for a bad
            batch or answer of ``query``.

    >>> import torch
    >>> log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    >>> from imm_lib import BeliefContexts
    >>> contexts = BeliefContexts(torch.tensor([[0.5, 0.5]]))
    >>> target, draws = torch.tensor([[0.7, 0.3]]), torch.Generator().manual_seed(0)
    >>> sampled = SampledIMM(target, contexts, k=1000, generator=draws)
    >>> round(sampled(lambda short, extended: log_q[extended], torch.tensor([0])).item(), 2)
    0.61
    """

    def __init__(
        self,
        target: Target,
        contexts: Contexts,
        k: int = 10,
        sequential: bool = False,
        generator: torch.Generator | None = None,
        divergence: Divergence | str = cross_entropy,
        group: Group = None,
    ):
        super().__init__(target, contexts, k, generator, divergence, group)
        self.sequential = checks.flag("sequential", sequential)

    def forward(self, query: Query, short: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean risk over the batch, in nats; arguments as of :meth:`ExactIMM.forward`."""
        asked, rows, extended, count, total = self.draw(short, weight)
        if self.sequential:
            passes = [
                partial(answer, query, asked, column, rows.shape[1])
                for column in extended.unbind(1)
            ]
            risk = sequential_risk(rows, passes, self.divergence)
        else:
            log_q = answers(query, asked, extended, rows.shape[1])
            log_induced = log_sum_exp(log_q) - math.log(self.k)
            risk = self.divergence(rows.to(log_q.dtype), log_induced)
        return self.mean(risk, count, total)
