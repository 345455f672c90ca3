"""Checks of probabilities and weights: rows that sum to 1, as they are or as logarithms.

What holds of all checks is said in :mod:`imm_lib.checks`.
"""

from typing import Any

import torch
from torch import Tensor

from imm_lib import checks


def tolerance(dtype: torch.dtype) -> float:
    """By how much a sum of probabilities of this dtype may differ from 1 before it is refused."""
    return max(1.1e-4, 8 * torch.finfo(dtype).eps)  # thirds of four digits pass


def normalised(rows: Tensor) -> Tensor:
    """``rows``, divided by their sums over the last dimension; half precision becomes float32.

    A sum that differs from 1 by rounding alone is left as it is. Looks at no value. The sums are
    constants to a gradient.
    """
    rows = checks.accumulator(rows)
    total = rows.detach().sum(-1, keepdim=True, dtype=checks.wide(rows.device))
    rounding = (total - 1).abs() <= 4 * torch.finfo(rows.dtype).eps
    return rows / total.masked_fill(rounding, 1.0).to(rows.dtype)


def probabilities(name: str, value: Any, *shape: checks.Size, why: str = "") -> Tensor:
    """``value``, if it is of that shape, (..., Y) by default, and its last dimension holds
    probability distributions, which then sum to 1 up to rounding: in float32 where it came in half
    precision. Looks at the values on every device.

    For objects, which are built once. Raises TypeError or ValueError.
    """
    checks.floating(name, value, *(shape or (..., "Y")), why=why)
    if checks.finite(name, value).min() < 0:
        raise ValueError(f"{name} must not be negative, got {value.min().item():g}")
    error = (value.detach().sum(-1, dtype=checks.wide(value.device)) - 1).abs().max().item()
    if error > tolerance(value.dtype):
        raise ValueError(
            f"{name} must sum to 1 over its last dimension, got sums off by up to {error:.3g}"
        )
    value = checks.usable(value)
    exact = error <= 4 * torch.finfo(value.dtype).eps and value.dtype not in checks.HALF
    return value if exact else normalised(value)


def resolves(name: str, value: Tensor, largest: int) -> Tensor:
    """``value``, if its dtype tells all whole numbers up to ``largest`` apart; raises ValueError.

    Looks at no value. Mixed precision casts what a batch holds, numbers of groups as well.
    """
    most = 2 / torch.finfo(value.dtype).eps
    if largest > most:
        raise ValueError(
            f"{name} must be of a dtype that holds whole numbers up to {largest}, "
            f"got {value.dtype}, which does up to {most:.0f}"
        )
    return value


LOOK = 2**18
"""Entries whose sums are looked at: all of a small tensor, evenly spaced rows of a large one."""


def log_probabilities(name: str, value: Any, *shape: checks.Size, why: str = "") -> Tensor:
    """``value``, if it is of that shape and (CPU only) has no NaN and nothing above 0.

    For what works label by label. Raises TypeError or ValueError.
    """
    checks.floating(name, value, *shape, why=why)
    if checks.visible(value):
        top = value.detach().amax().item()
        # a log_softmax may round a few ulp above 0; NaN fails the comparison as well
        if not top <= max(1e-4, torch.finfo(value.dtype).eps):
            raise ValueError(
                f"{name} must hold log-probabilities (at most 0, no NaN), got a maximum of {top:g}"
            )
    return value


def log_distributions(name: str, value: Any, *shape: checks.Size, why: str = "") -> Tensor:
    """:func:`log_probabilities` that (CPU only) sum to 1 over the last dimension: scores that are
    nowhere above 0 are none.

    Raises TypeError or ValueError.
    """
    if checks.visible(log_probabilities(name, value, *shape, why=why)):
        rows = value.detach().reshape(-1, value.shape[-1])[:: -(-value.numel() // LOOK)].float()
        error = rows.logsumexp(-1).abs().max().item()
        if not error <= 1 / 16:  # what bfloat16 may round, also if it was cast up since
            raise ValueError(
                f"{name} must hold log-probabilities, which sum to 1 over labels (log_softmax "
                f"gives them), got a row whose logsumexp is {error:.3g} away from 0"
            )
    return value


def log_weights(name: str, value: Any, k: int) -> Tensor:
    """``value``, if it ends in k log-weights, normalised (CPU only: within a tolerance) in log
    space.

    Raises TypeError or ValueError.
    """
    checks.floating(name, value, ..., k, why=" as log_q has contexts")
    value, allowed = checks.usable(value), max(1e-3, 8 * torch.finfo(value.dtype).eps)
    value = checks.accumulator(value)
    total = value.detach().logsumexp(-1, keepdim=True)
    if checks.visible(value):
        error = total.abs().max().item()
        if not error <= allowed:
            raise ValueError(
                f"{name} must be normalised (logsumexp 0 over k), got a logsumexp off by "
                f"{error:.3g}"
            )
    rounding = (total.abs() <= 4 * torch.finfo(value.dtype).eps) | ~total.isfinite()
    return value - total.masked_fill(rounding, 0.0)


def point_weights(value: Any, short: Tensor) -> Tensor:
    """``value``, if it is (B,) weights of the data points of ``short``, (CPU only) finite, not
    negative and not all 0, with a sum that float32 holds, in which a model may count with them.

    Raises TypeError or ValueError.
    """
    checks.floating("weight", value, len(short), why=", one number per data point")
    checks.same_device("weight", value, "short", short)
    value = checks.usable(value.detach())
    value = checks.accumulator(value)
    if checks.visible(value):
        low, total = value.min().item(), value.sum().item()
        single = torch.finfo(torch.float32)  # the inverse of a subnormal sum is infinite
        if not (low >= 0 and single.tiny <= total <= single.max):
            raise ValueError(
                "weight must be finite, not negative and not all 0, with a sum that float32 "
                f"resolves, got a minimum of {low:g} and a sum of {total:g}"
            )
    return value
