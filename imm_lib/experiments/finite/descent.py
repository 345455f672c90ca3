"""Many small minimisations at once, to convergence: a first-order method stops short where
directions differ in scale.

BFGS with a bisection for the weak Wolfe conditions, which also passes single kinks (Lewis and
Overton, 2013).
"""

from collections.abc import Callable

import torch
from torch import Tensor

DECREASE, CURVATURE = 1e-4, 0.9
"""Of the weak Wolfe conditions."""
TRIALS = 40
"""Of one line search."""


def minimise(
    loss: Callable[[Tensor], Tensor], theta: Tensor, steps: int = 500, tolerance: float = 1e-8
) -> Tensor:
    """Minimise R functions of d parameters at once.

    Args:
        loss: (R, d) parameters -> (R,) values, each of its own row.
        theta: (R, d) where to begin; float64.
        steps: the most iterations.
        tolerance: a run ends where its gradient is this small, or where no step along it lowers the
            value, as rounding will have it near a minimum.

    Returns:
        (R, d) parameters.
    """

    def both(at: Tensor) -> tuple[Tensor, Tensor]:
        at = at.detach().requires_grad_()
        value = loss(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
        return value.detach(), slope

    value, slope = both(theta)
    eye = torch.eye(theta.shape[1]).to(theta).expand(len(theta), -1, -1)
    inverse, plain = _first(eye, slope), torch.ones_like(value, dtype=torch.bool)
    going = slope.abs().amax(1) > tolerance
    for _ in range(steps):
        if not going.any():
            break
        direction = -(inverse @ slope.unsqueeze(2)).squeeze(2)
        size, new_value, new_slope = _search(both, theta, value, slope, direction, going)
        moved, turned = size.unsqueeze(1) * direction, new_slope - slope
        going = (size > 0) & (new_value < value)
        keep = going.unsqueeze(1)
        theta, slope = torch.where(keep, theta + moved, theta), torch.where(keep, new_slope, slope)
        value = torch.where(going, new_value, value)
        # a row without a step tries once more, along its gradient
        updated = _updated(inverse, eye, moved, turned)
        inverse = torch.where(keep.unsqueeze(2), updated, _first(eye, slope))
        again, plain = ~going & ~plain, ~going
        going = (going | again) & (slope.abs().amax(1) > tolerance)
    return theta


def _first(eye: Tensor, slope: Tensor) -> Tensor:
    """An inverse Hessian whose step is along the gradient, of length 1 at most."""
    return eye / slope.norm(dim=1).clamp(min=1).view(-1, 1, 1)


def _search(
    both: Callable, theta: Tensor, value: Tensor, slope: Tensor, direction: Tensor, going: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(R,) sizes of the step, 0 where none was found, with (R,) values and (R, d) gradients
    there.
    """
    down = (slope * direction).sum(1)
    low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
    size, found = torch.ones_like(value), torch.zeros_like(value)
    best_value, best_slope, open_ = value, slope, going & (down < 0)
    for _ in range(TRIALS):
        new_value, new_slope = both(theta + size.unsqueeze(1) * direction)
        lower = (new_value <= value + DECREASE * size * down) & new_slope.isfinite().all(1)
        flat = (new_slope * direction).sum(1) >= CURVATURE * down
        better = open_ & lower & (flat | (new_value <= best_value))
        found = torch.where(better, size, found)
        best_value = torch.where(better, new_value, best_value)
        best_slope = torch.where(better.unsqueeze(1), new_slope, best_slope)
        high = torch.where(open_ & ~lower, size, high)
        low = torch.where(open_ & lower & ~flat, size, low)
        open_ = open_ & ~(lower & flat)
        if not open_.any():
            break
        size = torch.where(open_, torch.where(high.isinf(), 2 * size, (low + high) / 2), size)
    return found, best_value, best_slope


def _updated(inverse: Tensor, eye: Tensor, moved: Tensor, turned: Tensor) -> Tensor:
    """BFGS's inverse Hessian after a step, unchanged where the curvature along it is not clearly
    positive.
    """
    product = (moved * turned).sum(1)
    good = product > 1e-10 * moved.norm(dim=1) * turned.norm(dim=1)
    rho = torch.where(good, 1 / torch.where(good, product, 1.0), 0.0).view(-1, 1, 1)
    side = eye - rho * moved.unsqueeze(2) * turned.unsqueeze(1)
    return side @ inverse @ side.mT + rho * moved.unsqueeze(2) * moved.unsqueeze(1)
