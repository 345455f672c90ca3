"""What keeps its precision when a model is cast to bfloat16 or float16."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)


class KeepsPrecision(nn.Module):
    """A module whose buffers follow to another device and to float32 or float64, but never to half
    precision.

    Rows of probabilities in bfloat16 sum to 1 within a percent only, and a running average of them
    stalls: a step of less than 1/256 of the value rounds to none.

    >>> module = KeepsPrecision()
    >>> module.register_buffer("table", torch.ones(2))
    >>> module.bfloat16().table.dtype, module.double().table.dtype
    (torch.float32, torch.float64)
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keep(value: Tensor) -> Tensor:
            moved = fn(value)
            return (
                value.to(moved.device) if moved.dtype in HALF and value.dtype not in HALF else moved
            )

        return super()._apply(keep, recurse)
