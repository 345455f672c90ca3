"""Separate gradient clipping of the primary loss and the IMM term (Appendix D.2.2)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from imm_lib import checks


def clipped_backward(
    loss: Tensor,
    imm_loss: Tensor,
    parameters: Iterable[Tensor],
    lam: float = 1.0,
    max_norm: float = 1.0,
    imm_max_norm: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Add clip(∇loss) + λ clip(∇imm_loss) to the ``.grad`` of the parameters.

    The two losses have very different scales, so that one common clip would let the larger gradient
    silence the other. Takes the place of ``(loss + lam * imm_loss).backward()`` and a clip of the
    sum.

    Args:
        loss: scalar, the cross-entropy.
        imm_loss: scalar, what an estimator returned; it may share its graph with ``loss``.
        parameters: leaf tensors to differentiate by.
        lam: λ, at least 0.
        max_norm: largest Euclidean norm of the primary gradient, over all parameters together.
        imm_max_norm: the same for the IMM gradient, before λ; by default ``max_norm``.

    Returns:
        The two gradient norms before clipping, detached scalars.

    Raises:
        TypeError, ValueError: a loss is not a scalar tensor, there are no parameters, λ is negative
            or a norm is not positive; no gradient has then been touched.

    >>> import torch
    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> clipped_backward((w * w).sum() / 2, (2 * w).sum(), [w], lam=0.5, max_norm=1.0, imm_max_norm=10.0)
    (tensor(5.), tensor(2.8284))
    >>> w.grad
    tensor([1.6000, 1.8000])
    """
    lam = checks.number("lam", lam, 0)
    limits = [checks.number("max_norm", max_norm, 0, open_low=True)]
    limits.append(
        limits[0]
        if imm_max_norm is None
        else checks.number("imm_max_norm", imm_max_norm, 0, open_low=True)
    )
    for name, value in (("loss", loss), ("imm_loss", imm_loss)):
        if checks.floating(name, value).dim() != 0:
            raise ValueError(f"{name} must be a scalar, got {checks.describe(value)}")
        if not value.requires_grad:
            raise ValueError(
                f"{name} must depend on the parameters, got a tensor without a graph to differentiate"
            )
    if isinstance(parameters, Tensor):
        raise TypeError(
            f"parameters must be an iterable of leaf tensors, got {checks.describe(parameters)}"
        )
    parameters = [checks.tensor("parameters", p) for p in parameters]
    if not all(p.is_leaf for p in parameters):
        raise ValueError(
            "parameters must be leaf tensors, got one that was computed: its .grad is not kept"
        )
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters:
        raise ValueError(
            "parameters must hold at least one tensor that requires a gradient, got none"
        )

    primary = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    imm = torch.autograd.grad(imm_loss, parameters, allow_unused=True)
    norms = []
    for grads, limit, weight in ((primary, limits[0], 1.0), (imm, limits[1], lam)):
        norm = torch.nn.utils.get_total_norm([g for g in grads if g is not None])
        scale = weight * (limit / (norm + 1e-6)).clamp(max=1.0)
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                parameter.grad = (
                    scale * grad if parameter.grad is None else parameter.grad + scale * grad
                )
        norms.append(norm)
    return norms[0], norms[1]
