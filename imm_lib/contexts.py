"""Where extended contexts come from: the law π(e|s) of the extended context e given the short
context s.

Every class answers the same three questions, for a batch of B short contexts:

- ``log_weights(short)``: the exact log π(e|s), dense, (B, E).
- ``support(short)``: the same as a flat list of the pairs with π(e|s) > 0.
- ``sample(short, k, generator)``: (B, k) extended contexts drawn from π(e|s), with replacement.

``num_short`` is the number of short contexts, None where they are continuous.

Extended contexts are named by an index: of one of ``points`` data points (``GroupedContexts``,
``KernelContexts``) or of a hidden state (``BeliefContexts``, which has no ``points``). The classes
keep copies of what they are given: ``.to(device)`` moves them, ``state_dict`` leaves them out,
since they are the data.
"""

import math
import operator
from typing import Protocol

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.checks import accumulator
from imm_lib.precision import KeepsPrecision

Support = tuple[Tensor, Tensor, Tensor]
MOST = 2**31
"""Short contexts in a table of counts: what has more, hashes for instance, is no number of them."""


class Contexts(Protocol):
    """What the estimators ask of a context class."""

    def support(self, short: Tensor) -> Support:
        """(B,) short contexts -> the pairs with π(e|s) > 0."""

    def sample(self, short: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        """(B,) short contexts -> (B, k) extended contexts."""


def _uniform(
    size: tuple[int, int], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Uniform numbers in [0, 1) on a device, drawn where the generator is, in float64 if it may be:
    float32 could not reach every one of more than 2^24 data points.
    """
    where = generator.device if generator is not None else device
    dtype = checks.wide(where)
    if generator is None:  # no generator=None: a compiled graph takes that for a fixed size only
        return torch.rand(*size, device=where, dtype=dtype)
    u = torch.rand(*size, generator=generator, device=where, dtype=dtype)
    # a copy to a GPU need not be waited for; one from a GPU must be
    return u.to(device, checks.wide(device), non_blocking=where.type == "cpu")


class GroupedContexts(KeepsPrecision):
    """Discrete short contexts: e is drawn uniformly from the multiset extend(s) of data points that
    share s (eq. 10).

    Stored as a compressed index of O(n + S) integers; sampling is vectorised over the batch.

    Args:
        short: (n,) ids of the short context of every data point.
        num_short: number S of short contexts; by default the largest id plus one.

    Raises:
        TypeError: ``short`` is not an integer tensor.
        ValueError: it is empty, not 1-D, or has ids outside [0, num_short).

    >>> import torch
    >>> contexts = GroupedContexts(torch.tensor([0, 1, 0, 0]))
    >>> contexts.extend(0)
    tensor([0, 2, 3])
    >>> contexts.log_weights(torch.tensor([1])).exp()
    tensor([[0., 1., 0., 0.]], dtype=torch.float64)
    """

    short: Tensor
    order: Tensor
    counts: Tensor
    starts: Tensor

    def __init__(self, short: Tensor, num_short: int | None = None):
        super().__init__()
        if num_short is not None:
            checks.count("num_short", num_short)
        short = checks.held("short", checks.ids("short", short, num_short))
        if num_short is None and (top := int(short.max())) >= MOST:
            raise ValueError(
                f"short must hold ids that count from 0, below {MOST}, got up to {top}: "
                "torch.unique(short, return_inverse=True)[1] gives such ids"
            )
        counts = torch.bincount(short, minlength=num_short or 0)
        order = torch.argsort(short, stable=True)
        self.hold(short=short.clone(), order=order, counts=counts, starts=counts.cumsum(0) - counts)

    @property
    def points(self) -> int:
        """The number n of data points, of which every one is an extended context."""
        return len(self.short)

    @property
    def num_short(self) -> int:
        """The number S of short contexts."""
        return len(self.counts)

    def extend(self, s: int) -> Tensor:
        """The data points, in order, whose short context is ``s``: the multiset extend(s) of eq.
        10.

        Raises:
            TypeError: ``s`` is not an integer.
            ValueError: ``s`` is outside [0, num_short).
        """
        if isinstance(s, bool) or not hasattr(s, "__index__"):
            raise TypeError(f"s must be an integer, got {checks.describe(s)}")
        s = operator.index(s)
        if not 0 <= s < len(self.counts):
            raise ValueError(f"s must be in [0, {len(self.counts)}), got {s}")
        start, count = self.starts[s], self.counts[s]
        return self.order[start : start + count]

    def _known(self, short: Tensor) -> Tensor:
        data = "the data of GroupedContexts", self.order
        short = checks.ids("short", short, len(self.counts), data)
        if checks.visible(short) and (self.counts[short] == 0).any():
            unseen = short[self.counts[short] == 0][0].item()
            raise ValueError(
                f"short has a context never seen in the data: {unseen}; expected one with data "
                "points"
            )
        return short

    def log_weights(self, short: Tensor) -> Tensor:
        """(B,) ids -> (B, n) float64 log π_n(e|s): -log |extend(s)| on the data points of s, -inf
        elsewhere.
        """
        short = self._known(short)
        same = short.unsqueeze(1) == self.short
        return torch.where(same, self._log_share(self.counts[short]).unsqueeze(1), -math.inf)

    def _log_share(self, count: Tensor) -> Tensor:
        return -count.to(checks.wide(count.device)).log()

    def support(self, short: Tensor) -> Support:
        """The N pairs with positive weight: ``row`` (N,) into ``short``, ``extended`` (N,),
        ``log_w`` (N,).
        """
        short = self._known(short)
        count = self.counts[short]
        row = torch.repeat_interleave(count)
        within = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        return row, self.order[self.starts[short][row] + within], self._log_share(count)[row]

    def sample(self, short: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        """(B,) ids -> (B, k) data points drawn uniformly with replacement from extend(s).

        Raises:
            ValueError: k < 1 or, on CPU, a short context without data. On a GPU, where a look at
                the values would wait, such a context yields the index n, so that the caller's
                indexing fails.
        """
        checks.count("k", k)
        checks.generator(generator)
        short = self._known(short)
        count = self.counts[short].unsqueeze(1)
        u = _uniform((len(short), k), generator, short.device)
        within = (u * count).long().minimum(count - 1)
        extended = self.order[
            (self.starts[short].unsqueeze(1) + within).clamp(0, len(self.order) - 1)
        ]
        return extended.masked_fill(count == 0, len(self.order))


class _DenseContexts(KeepsPrecision):
    """Extended contexts whose weights are cheapest as a dense (B, E) table."""

    @property
    def num_short(self) -> int | None:
        """The number S of short contexts; None, as they are continuous."""
        return None

    def log_weights(self, short: Tensor) -> Tensor:
        raise NotImplementedError

    def support(self, short: Tensor) -> Support:
        """The N pairs with positive weight: ``row`` (N,) into ``short``, ``extended`` (N,),
        ``log_w`` (N,).
        """
        log_w = self.log_weights(short)
        row, extended = (log_w > -math.inf).nonzero(as_tuple=True)
        return row, extended, log_w[row, extended]

    def sample(self, short: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        """B short contexts -> (B, k) extended contexts drawn from π(e|s) with replacement.

        Raises:
            ValueError: k < 1, or as ``log_weights``.
        """
        checks.count("k", k)
        checks.generator(generator)
        log_w = self.log_weights(short)
        total = log_w.to(checks.wide(log_w.device)).exp_().cumsum_(-1)
        u = _uniform((len(total), k), generator, log_w.device)
        # where the sum passes u; one of weight 0 does not move it and is never drawn
        end = total[:, -1:].contiguous()
        drawn = torch.searchsorted(total, u * end, right=True)
        return drawn.minimum(torch.searchsorted(total, end))


class KernelWeights(_DenseContexts):
    """Data points whose weight falls with the distance of their ``values``."""

    values: Tensor

    @property
    def points(self) -> int:
        """The number n of data points, of which every one is an extended context."""
        return len(self.values)

    @staticmethod
    def _log_kernel(distance: Tensor, bandwidth: float = 1.0) -> Tensor:
        """(B, n) distances -> (B, n) log weights, relative to the nearest point, so that a small
        bandwidth cannot send all of them to 0.
        """
        nearest = distance.amin(-1, keepdim=True)
        return torch.log_softmax((nearest - distance) / bandwidth, dim=-1)


class KernelContexts(KernelWeights):
    """Continuous short contexts: a soft nearest-neighbour estimate of π(e|s) with a Laplace kernel
    (eqs. 21, 22).

    The extended context of data point t has weight exp(-|s - values_t|₁ / bandwidth), normalised
    over the n points. The paper's α is 1 / bandwidth.

    Args:
        values: (n,) or (n, d) short contexts of the data points.
        bandwidth: width of the kernel, in the units of ``values``.

    Raises:
        TypeError: ``values`` is not a floating-point tensor.
        ValueError: it is empty, has more than two dimensions or is not finite, or ``bandwidth`` is
            not positive.

    >>> import torch
    >>> contexts = KernelContexts(torch.tensor([0.0, 1.0]), bandwidth=1.0)
    >>> contexts.log_weights(torch.tensor([0.0])).exp()
    tensor([[0.7311, 0.2689]])
    """

    def __init__(self, values: Tensor, bandwidth: float = 1.0):
        super().__init__()
        self.bandwidth = checks.number("bandwidth", bandwidth, 0, open_low=True)
        values = accumulator(checks.usable(checks.floating("values", values).detach()))
        if self.bandwidth < torch.finfo(values.dtype).tiny:
            raise ValueError(f"bandwidth must be a normal {values.dtype} number, got {bandwidth}")
        checks.shaped("values", values, *("n" if values.dim() == 1 else ("n", "d")))
        checks.finite("values", values)
        self.hold(values=values.clone())

    def log_weights(self, short: Tensor) -> Tensor:
        """(B,) or (B, d) short contexts -> (B, n) log π(e|s).

        Raises:
            TypeError: ``short`` is not a floating-point tensor.
            ValueError: it is empty or does not have the shape or device of ``values``.
        """
        checks.same_device("short", checks.floating("short", short), "values", self.values)
        checks.shaped("short", short, "B", *self.values.shape[1:], why=" as values are")
        asked = short.to(self.values.dtype)
        if checks.visible(asked) and not torch.isfinite(asked).all():
            raise ValueError(
                f"short must be finite in {asked.dtype}, got NaN, infinite or too large entries in "
                f"{checks.describe(short)}"
            )
        points = self.values.unsqueeze(1) if self.values.dim() == 1 else self.values
        query = asked.unsqueeze(1) if asked.dim() == 1 else asked
        return self._log_kernel(torch.cdist(query, points, p=1), self.bandwidth)


class BeliefContexts(_DenseContexts):
    """Known π(e|s): row s of ``belief`` is the law of the hidden extended context, a POMDP's belief
    for instance.

    Args:
        belief: (S, E) rows that sum to 1.

    Raises:
        TypeError: ``belief`` is not a floating-point tensor.
        ValueError: it is not 2-D, not finite, negative, or has rows that do not sum to 1.

    >>> import torch
    >>> contexts = BeliefContexts(torch.tensor([[0.5, 0.5, 0.0]]))
    >>> contexts.support(torch.tensor([0]))[1]
    tensor([0, 1])
    """

    belief: Tensor

    def __init__(self, belief: Tensor):
        super().__init__()
        belief = distributions.probabilities("belief", belief, "S", "E").detach()
        self.hold(belief=belief.clone())

    @property
    def num_short(self) -> int:
        """The number S of short contexts."""
        return len(self.belief)

    def log_weights(self, short: Tensor) -> Tensor:
        """(B,) ids -> (B, E) log π(e|s); raises TypeError or ValueError for ids outside [0, S)."""
        short = checks.ids("short", short, len(self.belief), ("belief", self.belief))
        return self.belief[short].log()
