"""Extended contexts for short contexts of several columns, some numbers, some categories."""

import math

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.checks import accumulator
from imm_lib.contexts import KernelWeights


class MixedContexts(KernelWeights):
    """Mixed short contexts: equality of the categories, and a Laplace kernel for each number.

    The product of :class:`GroupedContexts` and :class:`KernelContexts`: the extended context of
    data point t has weight exp(-Σ_j |s_j - values_tj| / bandwidth_j) if its group is that of s, and
    0 otherwise, normalised over the n points (eqs. 10, 21, 22). A short context is a row of 1 + d
    floats: the number of its group, then its values.

    Args:
        values: (n, d) numbers of the data points.
        group: (n,) ids of their combinations of categories.
        bandwidth: width of the kernel, for each column in its unit; or one width for all.

    Raises:
        TypeError: ``values`` are not floats or ``group`` not integers.
        ValueError: a shape that does not fit, values that are not finite, or a bandwidth that is
            not positive.

    >>> import torch
    >>> contexts = MixedContexts(torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([0, 0, 1]), 1.0)
    >>> contexts.log_weights(torch.tensor([[0.0, 0.0]])).exp()    # group 0, value 0
    tensor([[0.7311, 0.2689, 0.0000]])
    """

    group: Tensor
    bandwidth: Tensor

    def __init__(self, values: Tensor, group: Tensor, bandwidth: float | Tensor = 1.0):
        super().__init__()
        values = accumulator(checks.floating("values", values, "n", "d").detach())
        values = checks.finite("values", values).clone()
        group = checks.ids("group", group, beside=("values", values))
        checks.shaped("group", group, len(values), why=", as long as values")
        if not isinstance(bandwidth, Tensor):
            bandwidth = values.new_tensor(checks.number("bandwidth", bandwidth, 0, open_low=True))
        width = checks.finite("bandwidth", checks.floating("bandwidth", bandwidth).detach())
        width = width.to(values)
        if width.dim() > 1 or width.numel() not in (1, values.shape[1]):
            raise ValueError(
                f"bandwidth must be a number or (d,) = ({values.shape[1]},), "
                f"got {checks.describe(bandwidth)}"
            )
        if not ((width >= torch.finfo(width.dtype).tiny) & width.isfinite()).all():
            raise ValueError("bandwidth must hold positive finite numbers, got one that is not")
        width = width.expand(values.shape[1]).clone()
        self.largest = int(group.max())
        self.hold(values=values, group=group.clone(), bandwidth=width)

    def log_weights(self, short: Tensor) -> Tensor:
        """(B, 1 + d) short contexts -> (B, n) log π(e|s), -inf where the group is another.

        Raises:
            TypeError: ``short`` is not a floating-point tensor.
            ValueError: it is empty or of another width or device, or of a dtype that does not tell
                the groups apart; on CPU also NaN, or a group that no data point has.
        """
        checks.same_device("short", checks.floating("short", short), "values", self.values)
        width = 1 + self.values.shape[1]
        checks.shaped("short", short, "B", width, why=": a group, then the values")
        distributions.resolves("short", short, self.largest)
        if checks.visible(short) and not torch.isfinite(short).all():
            raise ValueError("short must be finite, got NaN or infinite entries")
        query = short[:, 1:].to(self.values.dtype) / self.bandwidth
        distance = torch.cdist(query, self.values / self.bandwidth, p=1)
        distance = distance.masked_fill(short[:, :1] != self.group, math.inf)
        if checks.visible(distance) and (alone := distance.isinf().all(-1)).any():
            unseen = short[alone][0, 0].item()
            raise ValueError(f"short has a group that no data point has: {unseen:g}")
        return self._log_kernel(distance)
