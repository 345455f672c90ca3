"""The last linear layer over parts of a batch: probabilities of some data points at a time, and a
gradient that is gathered as theirs come in, so that nothing of size data points x labels is held.

The gradient is formed in the forward pass, as fused cross-entropies do; the backward pass only
multiplies it.
"""

import math
import threading
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.checks import accumulator
from imm_lib.distributed import Group, is_shard, ranks, summed


class _Once(torch.autograd.Function):
    """Gradients times what comes from above, which know of no further derivative."""

    @staticmethod
    def forward(upstream, count, *tensors):
        return tuple(None if x is None else x * upstream.to(x.dtype) for x in tensors[:count])

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "a fused loss cannot be differentiated twice, as its gradient is formed in the forward "
            "pass: use cross-entropy plus MovingAverageIMM or SampledIMM"
        )


class _Formed(torch.autograd.Function):
    """A value whose gradient by its inputs is known already."""

    @staticmethod
    def forward(value, hidden, weight, bias, *gradients):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, upstream):
        saved = ctx.saved_tensors  # once: a checkpoint unpacks each tensor a single time
        inputs, gradients = saved[:3], saved[3:]
        return None, *_Once.apply(upstream, 3, *gradients, *inputs), None, None, None


ELEMENTS = {"cpu": 7 * 2**19}
"""Logits worked on at a time, by device; 2²⁷ on the others. On a CPU they and their
probabilities, 29 MB, stay in a large third-level cache: with half of them the products are slower,
with twice as many only the memory grows.
"""

LEAST = 64
"""Data points that are worked on at a time, at least: with fewer the products are slow."""


class Scratch(threading.local):
    """Memory that the next part, and the next step, uses again: fresh memory costs as much as two
    passes over it. A copy begins with none, and so does every thread.
    """

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def __reduce__(self) -> tuple:
        return Scratch, ()

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory of that shape; new memory is all zeros."""
        found = self.held.get(name)
        if (
            found is None
            or (found.dtype, found.device) != (dtype, like.device)
            or found.shape[1:] != shape[1:]
            or len(found) < shape[0]
        ):
            found = self.held[name] = torch.zeros(shape, dtype=dtype, device=like.device)
        return found[: shape[0]]


def scratch_of(memory: Scratch, hidden: Tensor) -> Scratch:
    """``memory`` on a CPU; elsewhere fresh memory, as its allocator keeps it."""
    return memory if isinstance(hidden, Tensor) and checks.visible(hidden) else Scratch()


def low_precision(x: Tensor) -> torch.dtype | None:
    """The dtype of autocast on the device of ``x``, if it is at work there."""
    kind = x.device.type
    low = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if low else None


class Head:
    """logits = hidden weightᵀ + bias of a batch, never all of them at a time.

    (N, H), (Y, H) and (Y,) or None. Under autocast the three products are computed in its dtype,
    all else in ``dtype``. Raises TypeError, ValueError for tensors of other kinds, shapes, dtypes
    or devices, and on a CPU for NaN or values so large that logits may overflow.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        memory: Scratch,
    ):
        _check(hidden, weight, bias)
        self.inputs = hidden, weight, bias
        self.memory, self.dtype = memory, dtype
        self.low = low_precision(hidden) or hidden.dtype
        self.hidden, self.weight = (x.detach().to(self.low) for x in (hidden, weight))
        self.bias = None if bias is None else bias.detach().to(self.low)
        # whether some label may have a logit of -inf
        self.rules_out = bias is not None and not (
            checks.visible(bias) and bias.detach().amin().item() > -math.inf
        )
        self.room = max(LEAST, ELEMENTS.get(hidden.device.type, 2**27) // len(weight))
        self.outer = self.hidden.new_zeros(len(hidden), dtype=dtype)
        wanted = torch.is_grad_enabled()
        self.wanted = tuple(wanted and x is not None and x.requires_grad for x in self.inputs)
        self.gradients: list[Tensor | None] = [
            None if x is None or not want else torch.zeros_like(x, dtype=accumulator(x).dtype)
            for x, want in zip(self.inputs, self.wanted, strict=True)
        ]

    def scratch(self, name: str, rows: int) -> Tensor:
        """(rows, Y) memory of that name, whatever it holds."""
        most = max(rows, min(self.room, len(self.hidden)) + 1)
        return self.memory.take(name, (most, len(self.weight)), self.hidden, self.dtype)[:rows]

    def zeros(self, name: str, size: int) -> Tensor:
        """(size,) zeros of that name; who uses them leaves zeros behind."""
        return self.memory.take(name + ", zeros", (size,), self.hidden, self.dtype)

    def _logits(self, points: Tensor | slice) -> Tensor:
        """(n, Y) logits of some data points, until the next call."""
        hidden = self.hidden[points]
        logits = self.scratch("logits", len(hidden))
        if self.low == self.dtype and self.bias is not None:
            torch.addmm(self.bias, hidden, self.weight.T, out=logits)
        else:
            logits.copy_(torch.nn.functional.linear(hidden, self.weight, self.bias))
        return logits

    def probabilities(self, points: Tensor | slice) -> Tensor:
        """(n, Y) probabilities of some data points, until the next call."""
        logits = self._logits(points)
        return torch.softmax(logits, 1, out=self.scratch("q", len(logits)))

    def softmax(self, points: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """(n, Y) logits of some data points, (n, Y) probabilities, and (n,) the log of their sum;
        the first two until the next call.
        """
        logits = self._logits(points)
        q = torch.softmax(logits, 1, out=self.scratch("q", len(logits)))
        log_sum = logits.amax(1) - q.amax(1).log()
        if self.rules_out:  # so that 0 times a logit is 0
            logits.clamp_(min=torch.finfo(self.dtype).min)
        return logits, q, log_sum

    def add(self, points: Tensor | slice, gradient: Tensor, unit: Tensor) -> None:
        """Take in ``unit`` times the (n, Y) gradient by the logits of some data points."""
        hidden, weight, bias = self.gradients
        if bias is not None:
            bias.add_(gradient.sum(0).mul_(unit))
        gradient = gradient.to(self.low)
        if hidden is not None:
            hidden[points] = (gradient @ self.weight).to(hidden.dtype).mul_(unit)
        if weight is not None:
            features = (self.hidden[points] * unit).to(self.low)
            if weight.dtype == self.low:
                weight.addmm_(gradient.T, features)
            else:
                weight.add_(gradient.T @ features)

    def add_outer(self, column: Tensor, unit: Tensor) -> None:
        """Take in ``unit`` times the gradient ``outer`` (N,) x ``column`` (Y,) by all logits."""
        hidden, weight, bias = self.gradients
        outer = self.outer * unit
        if bias is not None:
            bias.add_(column * outer.sum())
        low, rows = column.to(self.low), outer.to(self.low)
        if hidden is not None:
            hidden.addr_(outer.to(hidden.dtype), (low @ self.weight).to(hidden.dtype))
        if weight is not None:
            weight.addr_(column.to(weight.dtype), (rows @ self.hidden).to(weight.dtype))

    def scalar(self, value: Tensor) -> Tensor:
        """``value`` with the gradient that was taken in."""
        if not any(self.wanted):
            return value
        found = [
            None if x is None or g is None else g.to(x.dtype)
            for g, x in zip(self.gradients, self.inputs, strict=True)
        ]
        return _Formed.apply(value, *self.inputs, *found)


class Batch(NamedTuple):
    """What N data points are asked for."""

    labels: Tensor  # (N,) any label where none is asked for
    weights: Tensor  # (N,) of the cross-entropy; their mean over what counts is 1
    counted: Tensor | None  # (N,) 0 where the label is ignored, else 1; None where none is
    size: Tensor  # () how many count

    @classmethod
    def of(
        cls,
        head: Head,
        labels: Tensor,
        ignored: int,
        weights: Tensor | None,
        group: Group = None,
    ) -> "Batch":
        """The batch of (N,) ``labels``, some of them ``ignored``, with (Y,) ``weights`` of labels.

        With a group, ``size`` and ``weights`` are those of the joint batch, ``size`` per rank.
        Raises TypeError, ValueError as :meth:`imm_lib.FusedIMM.forward`.
        """
        if isinstance(ignored, bool) or not isinstance(ignored, Integral):
            raise TypeError(f"ignore_index must be an int, got {checks.describe(ignored)}")
        size, points = len(head.weight), len(head.hidden)
        if not -(2**63) <= ignored < 2**63:
            raise ValueError(f"ignore_index must be a number of int64, got {ignored}")
        labels = checks.shaped("labels", checks.integers("labels", labels), points)
        checks.same_device("labels", labels, "hidden", head.hidden)
        asked = labels != ignored
        everywhere = checks.visible(labels) and bool(asked.all())
        if group is None and checks.visible(labels) and not asked.any():
            raise ValueError(f"labels must hold one that is not ignore_index = {ignored}, got none")
        safe = checks.ids("labels", labels if everywhere else labels.where(asked, 0), size)
        share = asked.to(head.dtype)
        count = summed(share.sum(), group).clamp(min=1)
        if weights is not None:
            checks.floating("label_weights", weights, size)
            checks.same_device("label_weights", weights, "hidden", head.hidden)
            share = weights.detach().to(head.dtype)[safe] * share
            if (
                group is None
                and checks.visible(weights)
                and not (
                    weights.amin() >= 0 and torch.finfo(share.dtype).tiny <= share.sum() < math.inf
                )
            ):
                raise ValueError(
                    "label_weights must be finite, not negative, and positive for some label of "
                    "the batch, got others"
                )
            # of nothing, the mean is 0 where that could not be refused
            total = summed(share.sum(), group).clamp(min=torch.finfo(share.dtype).tiny)
            share = share * (count / total)
        return cls(safe, share, None if everywhere else asked.long(), count / ranks(group))


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise TypeError or ValueError unless the three make a linear layer with finite logits."""
    for name, value in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if is_shard(value):
            raise ValueError(
                f"{name} must be whole, got a shard of it (DTensor): call FusedIMM inside the "
                "forward of the sharded module that the last layer belongs to"
            )
    apart = isinstance(hidden, Tensor) and hidden.dim() == 3
    hint = "; join batch and time by flatten(0, 1)" * apart
    checks.floating("hidden", hidden, "N", "H", why=hint)
    checks.floating("weight", weight, "Y", hidden.shape[1], why=" as hidden has columns")
    if bias is not None:
        checks.floating("bias", bias, len(weight))
    low = low_precision(hidden)
    for name, value in {"weight": weight, "bias": bias if bias is not None else weight}.items():
        checks.same_device(name, value, "hidden", hidden)
        if value.dtype != hidden.dtype and low is None:
            raise ValueError(f"{name} must have hidden's dtype, {hidden.dtype}, got {value.dtype}")
    if checks.visible(hidden):
        _check_values(hidden, weight, bias, low or hidden.dtype)


def _check_values(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
    """Raise ValueError where a logit may be NaN or infinite; a bias of -inf rules a label out."""
    largest = {}
    for name, value in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if value is None:
            continue
        low, high = (x.item() for x in torch.aminmax(value.detach()))
        largest[name] = max(abs(low), abs(high)) if name != "bias" else high
        if not largest[name] < float("inf"):
            raise ValueError(f"{name} must be finite, got values from {low:g} to {high:g}")
        if high == -float("inf"):
            raise ValueError(f"{name} must leave some label possible, got -inf for all of them")
    product = largest["hidden"] * largest["weight"] * hidden.shape[1] + largest.get("bias", 0.0)
    if product > torch.finfo(dtype).max:  # only then is a closer look worth its time
        norms = (x.detach().double().norm(dim=1).amax().item() for x in (hidden, weight))
        product = math.prod(norms) + largest.get("bias", 0.0)
    if product > torch.finfo(dtype).max:
        raise ValueError(
            f"hidden and weight must have products that fit {dtype}, got values of up to "
            f"{largest['hidden']:g} and {largest['weight']:g}"
        )
