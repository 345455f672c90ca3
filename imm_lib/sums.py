"""Sums that keep their digits and their gradients: in log space, over many rows, and where 0 meets
an infinite logarithm.
"""

import math

import torch
from torch import Tensor

from imm_lib import checks

LONG = 2**15
"""Entries that are added up one after another in single precision; of ten million of one sign the
sum would be half a per cent off.
"""


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of a x b over all entries, with no product in memory."""
    a, b = a.reshape(-1), b.reshape(-1)
    if a.device.type != "cpu" or len(a) <= LONG:
        return torch.dot(a, b)
    if not checks.visible(a):  # in compiled code the product is no tensor of its own
        return (a * b).sum()
    pieces = [torch.dot(*pair) for pair in zip(a.split(LONG), b.split(LONG), strict=True)]
    return torch.stack(pieces).sum(dtype=torch.float64).to(a.dtype)


def add_rows(total: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """``total`` (G, ...), to which the rows of ``values`` (N, ...) with an ``index`` (N,) are added
    in place; many of them in float64, on a CPU.
    """
    few = len(values) <= LONG // 8 or values.dtype == torch.float64
    if few or not checks.visible(values):
        return total.index_add_(0, index, values)
    wide, rows = total.double(), max(1, 8 * LONG * len(values) // values.numel())
    for own, some in zip(index.split(rows), values.split(rows), strict=True):
        wide.index_add_(0, own, some.double())
    return total.copy_(wide)


def dot(weight: Tensor, log_p: Tensor) -> Tensor:
    """The sum of weight x log_p over all entries, where 0 times -inf is 0; where nothing is
    infinite one pass, and no product in memory.
    """
    if checks.visible(log_p):
        total = inner(weight, log_p)
        if not total.isnan():
            return total
    # not a clamp: what has a weight and no probability is infinite
    return inner(weight, log_p.masked_fill(weight == 0, 0.0))


class _Weighted(torch.autograd.Function):
    """-mean_t sum_y weight_t(y) log_q_t(y) of (B, Y) each, with a constant weight; 0 times -inf is
    0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_q, weight):
        return -dot(weight, log_q) / len(log_q)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, weight = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx, upstream):
        (weight,) = ctx.saved_tensors
        return weight * (-upstream / len(weight)), None


class _Once(torch.autograd.Function):
    """A surrogate, refused by a backward pass that builds a graph."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, upstream):
        # with create_graph=True; torch.func's transforms have it always
        if torch.is_grad_enabled() and not torch._C._functorch.is_functorch_wrapped_tensor(
            upstream
        ):
            raise RuntimeError(
                "a surrogate has the risk's gradient but not its second derivatives: "
                "with create_graph=True take ExactIMM or SampledIMM"
            )
        return upstream


weighted, once = _Weighted.apply, _Once.apply


def log_of_sum(total: Tensor) -> Tensor:
    """log of sums of probabilities; a sum of 0 gives -inf and the gradient 0, as no context can
    move it.
    """
    dead = total == 0
    return total.masked_fill(dead, 1.0).log().masked_fill(dead, -math.inf)


def log_sum_exp(x: Tensor) -> Tensor:
    """(..., k, Y) -> (..., Y) log sum exp, unchecked; torch.logsumexp has NaN gradients where all k
    entries are -inf.

    It allocates one tensor of the size of ``x``: the exponentials overwrite the differences.
    """
    top = _top(x)
    return log_of_sum((x - top).exp_().sum(-2)) + top.squeeze(-2)


def log_sum_exp_(x: Tensor) -> Tensor:
    """:func:`log_sum_exp` that overwrites ``x``, which nothing else may need."""
    top = _top(x)
    return log_of_sum(x.sub_(top).exp_().sum(-2)) + top.squeeze(-2)


def _top(x: Tensor) -> Tensor:
    """(..., 1, Y) the largest entries, finite, without a gradient."""
    return x.detach().amax(-2, keepdim=True).clamp_min(torch.finfo(x.dtype).min)


def segment_max(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The largest of the rows of ``values`` (N, Y) that share an ``index`` (N,) in [0, size) ->
    (size, Y), detached.

    At least the dtype's lowest finite number, so that ``values - segment_max`` is never inf - inf.
    """
    top = values.detach().new_full((size, values.shape[-1]), torch.finfo(values.dtype).min)
    return top.scatter_reduce_(0, index.unsqueeze(1).expand_as(values), values.detach(), "amax")


def segment_logsumexp(values: Tensor, index: Tensor, size: int) -> Tensor:
    """log sum exp of the rows of ``values`` (N, Y) that share an ``index`` (N,) in [0, size) ->
    (size, Y).

    The induced model when the extended contexts of each short context lie in a flat list (eq. 6).
    Differentiable; an empty segment gives -inf.
    """
    top = segment_max(values, index, size)
    share = (-top).index_select(0, index).add_(values).exp_()
    return log_of_sum(add_rows(torch.zeros_like(top), index, share)) + top
