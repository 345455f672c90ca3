"""Separate gradient clipping of the primary loss and the IMM term (Appendix D.2.2)."""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from imm_lib import checks
from imm_lib.distributed import is_shard
from imm_lib.sequential import leaves_of


def _leaves(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The distinct leaf tensors that want a gradient, in order; raises TypeError or ValueError."""
    found = checks.differentiable(parameters)
    if not all(p.is_leaf for p in found):
        raise ValueError(
            "parameters must be leaf tensors, got one that was computed: its .grad is not kept"
        )
    return found


def _average(parameters: list[Tensor], group: "dist.ProcessGroup | None") -> None:
    """Replace gradients by their means over the processes of a group; None is 0 where others have
    one. Those of FSDP2's shards are means already.
    """
    parameters = [p for p in parameters if not is_shard(p)]
    if not parameters:
        return
    size = dist.get_world_size(group)
    there = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
    there = there.int()
    dist.all_reduce(there, dist.ReduceOp.MAX, group)
    for parameter, somewhere in zip(parameters, there.tolist(), strict=True):
        if somewhere:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            grad = grad.to_dense() if grad.is_sparse else grad
            dist.all_reduce(grad, group=group)
            parameter.grad = grad.div_(size)


def _norm(parameters: list[Tensor]) -> Tensor:
    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(
        [g.coalesce().values() if g.is_sparse else g for g in grads]
    )


def add_clipped(
    backward: Callable[[], object],
    parameters: Iterable[Tensor],
    max_norm: float = math.inf,
    weight: float = 1.0,
    *,
    group: "dist.ProcessGroup | None" = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Run ``backward``, clip the gradients that it made, and add ``weight`` times them to .grad.

    What was in ``.grad`` is out of the way meanwhile: hooks see the new gradient alone, and an
    error puts everything back. Calls may be nested, to clip a sum of clipped gradients.

    Args:
        backward: calls ``.backward()``, once or several times.
        parameters: leaf tensors.
        max_norm: largest Euclidean norm over all parameters together; infinite for no clip.
        weight: of the clipped gradient.
        group: processes over which gradients are averaged before the clip, if ``torch.distributed``
            is in use; by default all. Harmless where DistributedDataParallel has done so already:
            it synchronises the first backward pass after a forward pass, and no further one.
        scale: factor by which the loss was scaled (by ``torch.amp.GradScaler``); the gradients keep
            it, the norms are without.

    Returns:
        The norm before clipping, a detached scalar.

    Raises:
        TypeError, ValueError: parameters that are no leaf tensors or none, or a norm that is not
            positive; before ``backward`` is called.
    """
    parameters = _leaves(parameters)
    max_norm = checks.limit("max_norm", max_norm, 0, open_low=True)
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1
    # DistributedDataParallel may write the new gradient where the old one is
    held = [p.grad.clone() if together and p.grad is not None else p.grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        backward()
        if together:
            _average(parameters, group)
        norm = _norm(parameters) if scale is None else _norm(parameters) / scale
        factors: list[Tensor | float] = []
        factors += [] if max_norm == math.inf else [(max_norm / (norm + 1e-6)).clamp(max=1.0)]
        factors += [] if weight == 1 else [weight]
        for parameter, before in zip(parameters, held, strict=True):
            grad = parameter.grad
            if grad is None or weight == 0:  # 0 times an infinite gradient would be NaN
                parameter.grad = before
                continue
            for factor in factors:
                on = factor.to(grad.device) if isinstance(factor, Tensor) else factor
                grad = grad * on if grad.is_sparse else grad.mul_(on)
            if before is not None:  # a sparse gradient can be added to a dense one only
                grad = before + grad if grad.is_sparse else grad.add_(before)
            parameter.grad = grad
    except BaseException:
        for parameter, before in zip(parameters, held, strict=True):
            parameter.grad = before
        raise
    return norm


def clipped_backward(
    loss: Tensor,
    imm_loss: Tensor,
    parameters: Iterable[Tensor],
    lam: float = 1.0,
    max_norm: float = 1.0,
    imm_max_norm: float | None = None,
    *,
    group: "dist.ProcessGroup | None" = None,
    scaler: "torch.amp.GradScaler | None" = None,
) -> tuple[Tensor, Tensor]:
    """Add clip(∇loss) + λ clip(∇imm_loss) to the ``.grad`` of the parameters.

    The two losses have very different scales, so that one common clip would let the larger gradient
    silence the other. Takes the place of ``(loss + lam * imm_loss).backward()`` and a clip of the
    sum. Each loss has a backward pass of its own, so hooks run twice.

    Args:
        loss: scalar, the cross-entropy.
        imm_loss: scalar, what an estimator returned; it may share its graph with ``loss``.
        parameters: leaf tensors to differentiate by; the ``.grad`` of others is left alone.
        lam: λ, at least 0.
        max_norm: largest Euclidean norm of the primary gradient, over all parameters together.
        imm_max_norm: the same for the IMM gradient, before λ; by default ``max_norm``.
        group: processes over which each gradient is averaged before it is clipped; by default all,
            where ``torch.distributed`` is in use. Every one of them has to call this.
        scaler: a gradient scaler. Give the losses as they are: they are scaled here, and so are the
            gradients left in ``.grad``, as ``scaler.step`` expects them. Limits and norms are
            without the scale; do not call ``scaler.unscale_`` before.

    Returns:
        The two gradient norms before clipping, detached scalars.

    Raises:
        TypeError, ValueError: a loss is not a scalar tensor, there are no parameters or shards of
            FSDP2, λ is negative or a norm is not positive; no gradient has then been touched.

    >>> import torch
    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> loss, risk = (w * w).sum() / 2, (2 * w).sum()
    >>> clipped_backward(loss, risk, [w], lam=0.5, max_norm=1.0, imm_max_norm=10.0)
    (tensor(5.), tensor(2.8284))
    >>> w.grad
    tensor([1.6000, 1.8000])
    """
    lam = checks.number("lam", lam, 0)
    max_norm = checks.number("max_norm", max_norm, 0, open_low=True)
    if imm_max_norm is None:
        imm_max_norm = max_norm
    imm_max_norm = checks.number("imm_max_norm", imm_max_norm, 0, open_low=True)
    for name, value in (("loss", loss), ("imm_loss", imm_loss)):
        if checks.floating(name, value).dim() != 0:
            raise ValueError(f"{name} must be a scalar, got {checks.describe(value)}")
        checks.held(name, value)
        if not value.requires_grad:
            raise ValueError(
                f"{name} must depend on the parameters, got a tensor without a graph to "
                "differentiate"
            )
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(
            f"scaler must be a torch.amp.GradScaler or None, got {checks.describe(scaler)}"
        )
    parameters = _leaves(parameters)
    if any(is_shard(p) for p in parameters):
        raise ValueError(
            "parameters must be whole, got shards of FSDP2, which reduces one backward pass after "
            "a forward pass: use add_clipped twice, each time with a forward pass of its own"
        )
    scale = None
    if scaler is not None:
        scale = scaler.scale(torch.ones((), device=loss.device))
        loss, imm_loss = scaler.scale(loss), scaler.scale(imm_loss)

    listed = {id(p) for p in parameters}
    behind = leaves_of(loss) | leaves_of(imm_loss)
    others = [(leaf, leaf.grad) for key, leaf in behind.items() if key not in listed]
    held = [p.grad for p in parameters]
    for leaf, _ in others:
        leaf.grad = None
    primary = partial(loss.backward, retain_graph=True)
    try:
        norm = add_clipped(primary, parameters, max_norm, group=group, scale=scale)
        imm_norm = add_clipped(
            imm_loss.backward, parameters, imm_max_norm, lam, group=group, scale=scale
        )
    except BaseException:
        for parameter, before in zip(parameters, held, strict=True):
            parameter.grad = before
        raise
    finally:
        for leaf, before in others:
            leaf.grad = before
    return norm, imm_norm
