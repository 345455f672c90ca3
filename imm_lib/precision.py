"""What keeps its precision when a model is cast to bfloat16 or float16, and what keeps its data
when a model is emptied or sent to other processes.
"""

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from imm_lib.checks import HALF


class KeepsPrecision(nn.Module):
    """A module whose buffers follow to another device and to float32 or float64, but never to half
    precision.

    Rows of probabilities in bfloat16 sum to 1 within a percent only, and a running average of them
    stalls: a step of less than 1/256 of the value rounds to none.

    >>> import torch
    >>> module = KeepsPrecision()
    >>> module.register_buffer("table", torch.ones(2))
    >>> module.bfloat16().table.dtype, module.double().table.dtype
    (torch.float32, torch.float64)
    """

    def hold(self, **data: Tensor) -> None:
        """Keep tensors that are given and not learnt, as attributes.

        They follow ``.to()`` as buffers do, but are none: ``state_dict`` leaves them out,
        DistributedDataParallel does not replace a rank's by another's, and ``to_empty`` does not
        empty them.

        >>> import torch
        >>> module = KeepsPrecision()
        >>> module.hold(points=torch.tensor([0.5]))
        >>> torch.nn.Sequential(module).double().to_empty(device="cpu")[0].points
        tensor([0.5000], dtype=torch.float64)
        """
        for name, value in data.items():
            setattr(self, name, value)
        self._held = tuple(dict.fromkeys((*getattr(self, "_held", ()), *data)))

    def held(self) -> Iterator[Tensor]:
        """The tensors that :meth:`hold` keeps."""
        return (getattr(self, name) for name in getattr(self, "_held", ()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keep(value: Tensor) -> Tensor:
            moved = fn(value)
            return (
                value.to(moved.device) if moved.dtype in HALF and value.dtype not in HALF else moved
            )

        for name in getattr(self, "_held", ()):
            value = getattr(self, name)
            like = keep(value.new_empty(0))  # where to and as what; never what fn makes of the data
            setattr(self, name, value.to(like.device, like.dtype))
        return super()._apply(keep, recurse)
