"""Checks of input: each error names the argument, says what came and what was expected.

Shapes and dtypes are checked on every device. Values are looked at only where that cannot make a
GPU wait: on CPU tensors, outside compiled or vmapped code.
"""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def describe(value: object) -> str:
    """A short account of what came: dtype, shape and device of a tensor, ``repr`` of anything else."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"


def visible(x: Tensor) -> bool:
    """Whether looking at the values of ``x`` costs no device synchronisation and breaks no
    transform.
    """
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def in_backward() -> bool:
    """Whether a backward pass runs this: a checkpoint's second forward pass, for instance."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def tensor(name: str, value: Any) -> Tensor:
    """``value``, if it is a tensor; raises TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {describe(value)}")
    return value


def floating(name: str, value: Any) -> Tensor:
    """``value``, if it is a floating-point tensor; raises TypeError."""
    if not tensor(name, value).is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {describe(value)}")
    return value


def count(name: str, value: Any) -> int:
    """``value``, if it is an integer of at least 1; raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {describe(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def number(
    name: str, value: Any, low: float, high: float = math.inf, open_low: bool = False
) -> float:
    """``value``, if it is a finite real number in [low, high] (or (low, high]); raises TypeError or
    ValueError.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number, got {describe(value)}")
    found = float(value)
    inside = low < found <= high if open_low else low <= found <= high
    if not (inside and math.isfinite(found)):
        bound = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if math.isinf(high) else ']'}"
        raise ValueError(f"{name} must be a finite number in {bound}, got {value}")
    return found


def generator(value: object) -> torch.Generator | None:
    """``value``, if it is a torch.Generator or None; raises TypeError."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {describe(value)}")
    return value


def ids(name: str, value: Any, size: int | None = None) -> Tensor:
    """``value`` as int64, if it is a non-empty 1-D integer tensor with values in [0, size).

    Raises TypeError for another dtype, ValueError for another shape or (CPU only) an id out of
    range.
    """
    if tensor(name, value).is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor of ids, got {describe(value)}")
    if value.dim() != 1 or value.numel() == 0:
        raise ValueError(f"{name} must be a non-empty 1-D tensor of ids, got {describe(value)}")
    if visible(value):
        low, high = value.min().item(), value.max().item()
        if low < 0 or (size is not None and high >= size):
            raise ValueError(
                f"{name} must hold ids in [0, {size if size is not None else 'inf'}), got {low}..{high}"
            )
    return value.long()


def probabilities(name: str, value: Any) -> Tensor:
    """``value``, if its last dimension holds probability distributions. Looks at the values on
    every device.

    For objects, which are built once. Raises TypeError or ValueError.
    """
    if floating(name, value).dim() < 1 or value.numel() == 0:
        raise ValueError(
            f"{name} must be non-empty with distributions in its last dimension, got {describe(value)}"
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite entries in {describe(value)}")
    if value.min() < 0:
        raise ValueError(f"{name} must not be negative, got {value.min().item():g}")
    tolerance = max(1e-4, 8 * torch.finfo(value.dtype).eps)
    error = (value.double().sum(-1) - 1).abs().max().item()
    if error > tolerance:
        raise ValueError(
            f"{name} must sum to 1 over its last dimension, got sums off by up to {error:.3g}"
        )
    return value


def log_probabilities(name: str, value: Any, dim: int) -> Tensor:
    """``value``, if it has at least ``dim`` dimensions, is non-empty, and (CPU only) has no NaN and
    nothing above 0.

    Raises TypeError or ValueError.
    """
    if floating(name, value).dim() < dim or value.numel() == 0:
        raise ValueError(
            f"{name} must be a non-empty tensor of at least {dim} dimensions, got {describe(value)}"
        )
    if visible(value):
        top = value.detach().amax().item()
        # a log_softmax may round a few ulp above 0; NaN fails the comparison as well
        if not top <= max(1e-4, torch.finfo(value.dtype).eps):
            raise ValueError(
                f"{name} must hold log-probabilities (at most 0, no NaN), got a maximum of {top:g}"
            )
    return value


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{name} is on {value.device} but {other_name} is on {other.device}: move them to one device with .to()"
        )
