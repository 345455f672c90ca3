"""Checks of input: each error names the argument, says what came and what was expected.

Shapes and dtypes are checked on every device. Values are looked at only where that cannot make a
GPU wait: on CPU tensors, outside compiled or vmapped code.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from torch import Tensor


def describe(value: object) -> str:
    """A short account of what came: dtype, shape and device of a tensor, else its ``repr``, if that
    is short and one line.
    """
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    told = repr(value)
    return told if len(told) < 80 and "\n" not in told else f"a {type(value).__name__}"


def visible(x: Tensor) -> bool:
    """Whether looking at the values of ``x`` costs no device synchronisation and breaks no
    transform.
    """
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def transformed(x: Tensor) -> bool:
    """Whether one of torch.func's transforms is looking."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def lasting(x: Tensor) -> Tensor:
    """``x`` without what torch.func's transforms wrap it in, which is of no use after them; of vmap
    the whole batch.
    """
    while transformed(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def in_backward() -> bool:
    """Whether a backward pass runs this: a checkpoint's second forward pass, for instance."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def tensor(name: str, value: Any) -> Tensor:
    """``value``, if it is a dense tensor; raises TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {describe(value)}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {value.layout}")
    return value


def usable(value: Tensor) -> Tensor:
    """``value``, or a copy of a tensor made in inference mode, which no graph may keep."""
    if torch.compiler.is_compiling() or not value.is_inference():
        return value
    return value if torch.is_inference_mode_enabled() else value.clone()


HALF = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.float64, *HALF)
Size = int | str | EllipsisType


def shaped(name: str, value: Tensor, *shape: Size, why: str = "") -> Tensor:
    """``value``, if it has these sizes; raises ValueError, with ``why`` after what is expected.

    A letter stands for any size but 0, the same one wherever it comes, and ``...`` in front for any
    dimensions that are not empty.
    """
    leading = len(shape) > 0 and shape[0] is ...
    wanted = shape[1:] if leading else shape
    more = value.dim() - len(wanted)
    fits = more == 0 or (leading and more > 0 and value.numel() > 0)
    sizes: dict[str, int] = {}
    for want, found in zip(reversed(wanted), reversed(value.shape), strict=False):
        if isinstance(want, str):
            fits = fits and found > 0 and sizes.setdefault(want, found) == found
        else:
            fits = fits and want == found
    if not fits:
        told = ", ".join("..." if size is ... else str(size) for size in shape)
        told = f"({told}{',' * (len(shape) == 1)})"
        told = told if value.numel() > 0 else f"non-empty {told}"
        raise ValueError(f"{name} must be {told}{why}, got {describe(value)}")
    return value


def floating(name: str, value: Any, *shape: Size, why: str = "") -> Tensor:
    """``value``, if it is a floating-point tensor, and :func:`shaped` if a shape is given; raises
    TypeError or ValueError.
    """
    if tensor(name, value).dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating-point tensor, got {describe(value)}")
    return shaped(name, value, *shape, why=why) if shape else value


def accumulator(x: Tensor) -> Tensor:
    """``x`` in the dtype to add it up in: float32 for half precision, unchanged otherwise."""
    return x.float() if x.dtype in HALF else x


def values(name: str, value: Any, *shape: Size, why: str = "") -> Tensor:
    """``value`` in the dtype to accumulate in, if it is of that shape and (CPU only) finite; raises
    TypeError or ValueError.
    """
    floating(name, value, *shape, why=why)
    if visible(value) and not value.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    return accumulator(value)


def column(found: Any) -> str:
    """A hint, if one output has no dimension of its own."""
    return "; one output is [:, None]" if isinstance(found, Tensor) and found.dim() == 1 else ""


def coarser(found: Any, labels: int | str) -> str:
    """Why log-probabilities are to have so many labels, and a hint if they have more."""
    if isinstance(labels, str):
        return ""
    more = isinstance(found, Tensor) and found.dim() == 2 and found.shape[1] > labels
    hint = "; for a target of coarser labels give imm.coarsen(log_q, labels)" if more else ""
    return f", with the target's labels{hint}"


def answer(query: Any, short: Tensor, extended: Tensor) -> Any:
    """``query(short, extended)``; raises TypeError for what cannot be called so."""
    if not callable(query):
        raise TypeError(f"query must be a function, got {describe(query)}")
    try:
        return query(short, extended)
    except TypeError as error:
        if found := _other_arguments(query):
            raise TypeError(f"query must take (short, extended), got {found}") from error
        raise


def _other_arguments(query: Callable) -> str:
    """What a function takes, if two arguments are not that."""
    try:
        found = inspect.signature(query.forward if isinstance(query, torch.nn.Module) else query)
    except (TypeError, ValueError):  # of one written in C, say
        return ""
    try:
        found.bind(None, None)
    except TypeError:
        return str(found.replace(return_annotation=inspect.Signature.empty))
    return ""


def differentiable(parameters: Any) -> list[Tensor]:
    """The distinct tensors that want a gradient, in order: a weight that is listed twice, as a tied
    one may be, is one. Raises TypeError, ValueError.
    """
    if isinstance(parameters, torch.nn.Module | Tensor) or not isinstance(parameters, Iterable):
        raise TypeError(f"parameters must be an iterable of tensors, got {describe(parameters)}")
    found = {id(p): p for p in parameters if tensor("parameters", p).requires_grad}
    if not found:
        raise ValueError(
            "parameters must hold at least one tensor that requires a gradient, got none"
        )
    return list(found.values())


def flag(name: str, value: Any) -> bool:
    """``value``, if it is a bool; raises TypeError: any word would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
    return bool(value)


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
    try:
        found = float(value)
    except OverflowError:  # an int, or a fraction, that no float holds
        found = math.inf
    inside = low < found <= high if open_low else low <= found <= high
    if not (inside and math.isfinite(found)):
        bound = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if math.isinf(high) else ']'}"
        raise ValueError(f"{name} must be a finite number in {bound}, got {value}")
    return found


def limit(name: str, value: Any, low: float, open_low: bool = False) -> float:
    """As :func:`number`; infinite is no limit."""
    if isinstance(value, Real) and value == math.inf:
        return math.inf
    return number(name, value, low, open_low=open_low)


def held(name: str, value: Tensor) -> Tensor:
    """``value``, if it holds values, as a tensor on the meta device does not; raises ValueError."""
    if value.is_meta:
        raise ValueError(f"{name} must hold values, got {describe(value)}")
    return value


def finite(name: str, value: Tensor) -> Tensor:
    """``value``, if it holds finite values. Looks at them on every device; raises ValueError."""
    if not torch.isfinite(held(name, value)).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite entries in {describe(value)}")
    return value


def generator(value: object) -> torch.Generator | None:
    """``value``, if it is a torch.Generator or None; raises TypeError."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {describe(value)}")
    return value


def integers(name: str, value: Any) -> Tensor:
    """``value``, a tensor or NumPy array of any integer dtype, as int64: in an unsigned one -100 is
    another number, and an index of uint8 is a mask. Raises TypeError.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            came = f"a {value.dtype} array of shape {value.shape}"
            raise TypeError(f"{name} must be an integer tensor of ids, got {came}")
        return torch.from_numpy(value.astype(np.int64))  # a copy, as a mapped file is read-only
    whole = not (tensor(name, value).is_floating_point() or value.is_complex())
    if not whole or value.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor of ids, got {describe(value)}")
    return usable(value).long()


def ids(
    name: str, value: Any, size: int | None = None, beside: tuple[str, Tensor] | None = None
) -> Tensor:
    """``value`` as int64, if it is a non-empty 1-D integer tensor or NumPy array with values in
    [0, size), on the device of what it is used with, if that is named.

    Any integer dtype will do, unsigned ones as well: files of tokens are often uint16. Raises
    TypeError for another dtype, ValueError for another shape, device or (CPU only) an id out of
    range.
    """
    value = integers(name, value)
    shaped(name, value, "N", why=", 1-D")
    if visible(value):
        low, high = value.min().item(), value.max().item()
        if low < 0 or (size is not None and high >= size):
            raise ValueError(
                f"{name} must hold ids in [0, {size if size is not None else 'inf'}), got "
                f"{low}..{high}"
            )
    if beside is not None:
        same_device(name, value, *beside)
    return value


NARROW = {"mps"}
"""Kinds of device that have no float64."""


def wide(device: torch.device) -> torch.dtype:
    """The dtype to add up probabilities in: float64, where the device has it."""
    return torch.float32 if device.type in NARROW else torch.float64


def double(name: str, value: Tensor) -> Tensor:
    """``value`` in float64; raises TypeError on a device that has none."""
    if value.device.type in NARROW:
        raise TypeError(
            f"{name} must be on a device with float64, got {describe(value)}: move the data and "
            "the model to the CPU, or set IMM_DEVICE=cpu"
        )
    return value.double()


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{name} is on {value.device} but {other_name} is on {other.device}: move them to one "
            "device with .to()"
        )
