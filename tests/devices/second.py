"""A second device that every machine has, to find a forgotten ``.to(device)`` without a GPU.

A tensor on it is a subclass that holds its values on the CPU and says that it is elsewhere. It
behaves as one on a GPU does: an operator that mixes it with a tensor of the CPU raises, so do
numpy and matplotlib, and a generator of the CPU draws on the CPU only. Numbers are the CPU's.
"""

import contextlib
import warnings
from collections import Counter
from types import SimpleNamespace

import torch
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

aten = torch.ops.aten

KIND = "maia"
"""A kind of device that torch knows by name, that autocast accepts, and that is nowhere here."""
SECOND = torch.device(KIND, 0)

_MOVES = {aten._to_copy.default, aten.copy_.default, aten.copy.default}
# indices may stay on the CPU
_INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
}
# these take no lone number of the CPU among their tensors
_STRICT = {aten.cat.default, aten.stack.default, aten.mm.default, aten.bmm.default}
_LOOKS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
# what makes or moves values without computing any
_NAMES = """
_to_copy copy_ copy clone detach alias empty new_empty empty_like zeros ones full new_zeros
new_ones new_full zeros_like ones_like full_like scalar_tensor arange linspace eye lift_fresh
rand randn randint randperm uniform_ normal_ random_ bernoulli_ multinomial fill_ zero_ view
_unsafe_view reshape select slice transpose permute t expand squeeze unsqueeze cat stack split
split_with_sizes unbind index gather unfold as_strided diagonal repeat _reshape_alias
index_select masked_select sort flip isfinite isnan
"""
_PASSIVE = set(_NAMES.split())


class Elsewhere(torch.Tensor):
    """A tensor on the second device; ``held`` has its values."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        # underneath it is a meta tensor, whose backward pass needs no machinery of a backend
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device="meta",
        )
        made.held = held
        return made

    device = property(lambda self: SECOND)
    is_meta = property(lambda self: False)

    def _refuse(self, *args, **kwargs):
        raise TypeError(
            f"can't convert {SECOND} device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )

    numpy = __array__ = _refuse

    def tolist(self):
        return self.detach().held.tolist()

    def __format__(self, spec):
        return format(self.item() if self.dim() == 0 else str(self), spec)

    def __repr__(self, **kwargs):
        with torch._C.DisableTorchFunctionSubclass():
            return f"{self.detach().held!r} on {SECOND}"

    def __reduce_ex__(self, protocol):  # as a checkpoint is read: on the CPU
        return self.detach().held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            with torch.no_grad():
                made = self.detach().clone()
            if isinstance(self, torch.nn.Parameter):
                made = torch.nn.Parameter(made, self.requires_grad)
            else:
                made.requires_grad_(self.requires_grad)
            memo[id(self)] = made
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})[0]


def _here(device) -> bool:
    return torch.device(device).type in (KIND, "meta")


def _mixed(func, what: str) -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found {what} ({func.__name__})"
    )


def _check(func, args, flat: list[torch.Tensor]) -> None:
    """Raise RuntimeError where a GPU would: tensors of two devices in one operator."""
    if any(type(t) is torch.Tensor and t.is_meta for t in flat):
        raise RuntimeError(f"a tensor without values reached {func.__name__}")
    there = [t for t in flat if isinstance(t, Elsewhere)]
    plain = [t for t in flat if not isinstance(t, Elsewhere)]
    if not there or not plain or func in _MOVES:
        return
    if func in _INDEXED:
        if not isinstance(args[0], Elsewhere):
            raise _mixed(func, f"a tensor of cpu and indices or values of {SECOND}")
        plain = [t for t in args[2:3] if isinstance(t, torch.Tensor) and type(t) is torch.Tensor]
    large = [t for t in plain if t.dim() > 0 or func in _STRICT]
    if large:
        raise _mixed(func, f"at least two devices, {SECOND} and cpu of shape {large[0].shape}")
    first = args[0] if args else None
    if func._schema.is_mutable and isinstance(first, torch.Tensor) and type(first) is torch.Tensor:
        raise _mixed(func, f"an output on cpu for a result on {SECOND}")


def _run(func, args, kwargs):
    """The result of an operator, and whether it was computed on the second device."""
    leaves, form = tree_flatten((args, kwargs))
    flat = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    _check(func, args, flat)
    named = kwargs.get("device")
    there = _here(named) if named is not None else any(isinstance(t, Elsewhere) for t in flat)
    if func is aten.copy_.default:
        there = isinstance(args[0], Elsewhere)
    generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
    if there and generators:
        raise RuntimeError(
            f"Expected a '{KIND}' device type for generator but found 'cpu' ({func.__name__})"
        )
    held = {id(t.held): t for t in flat if isinstance(t, Elsewhere)}
    args, kwargs = tree_unflatten(
        [leaf.held if isinstance(leaf, Elsewhere) else leaf for leaf in leaves], form
    )
    if named is not None and there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*args, **kwargs)
    if not there:
        return found, False
    for wrapper in held.values():  # an operator in place, such as squeeze_, may change its shape
        values = wrapper.held
        if wrapper.shape != values.shape or wrapper.stride() != values.stride():
            with no_dispatch():
                wrapper.as_strided_(values.size(), values.stride(), values.storage_offset())

    def wrapped(value: torch.Tensor) -> torch.Tensor:
        return held[id(value)] if id(value) in held else Elsewhere(value)

    return tree_map_only(torch.Tensor, wrapped, found), True


class SecondDevice(TorchDispatchMode):
    """While it is active, tensors can be made on ``SECOND``; ``computed`` counts the elements that
    arithmetic on real numbers has made, by device and operator.
    """

    def __init__(self):
        super().__init__()
        self.computed = {"cpu": Counter(), KIND: Counter()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found, there = _run(func, args, kwargs or {})
        name = func.__name__.partition(".")[0]
        if func not in _LOOKS and name not in _PASSIVE:
            first = found[0] if isinstance(found, tuple | list) and found else found
            if isinstance(first, torch.Tensor) and first.is_floating_point():
                self.computed[KIND if there else "cpu"][name] += first.numel()
        return found


def _key(key):
    """An index whose lists are tensors of the CPU; torch would make them where no values are."""
    if isinstance(key, tuple):
        return tuple(map(_key, key))
    return torch.tensor(key) if isinstance(key, list) else key


class _FromLists(TorchFunctionMode):
    """``torch.tensor`` and its like, which make their tensor below all operators."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            where = kwargs.get("device")
            if isinstance(args[0], Elsewhere):
                moved = args[0].to(device=where, dtype=kwargs.get("dtype"))
                return moved.detach().clone() if func is torch.tensor else moved
            args = tree_map_only(Elsewhere, Elsewhere.tolist, args)  # numbers in a list are read
            if where is not None and _here(where):
                return func(*args, **{**kwargs, "device": "cpu"}).to(SECOND)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _key(args[1]), *args[2:])
        if func is torch.Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(SECOND)
        return func(*args, **kwargs)


@contextlib.contextmanager
def second_device():
    """Both modes, and no gradient on the CPU; gives the :class:`SecondDevice`."""
    fused = optimizer._get_fused_kernels_supported_devices
    optimizer._get_fused_kernels_supported_devices = lambda: [*fused(), KIND]
    # torch.maia: its draws are those of the CPU's default generator
    state = {"get_rng_state": lambda *_: torch.get_rng_state()}
    state["set_rng_state"] = lambda value, *_: torch.set_rng_state(value)
    setattr(torch, KIND, SimpleNamespace(**state))
    try:
        with (
            SecondDevice() as mode,
            _FromLists(),
            no_gradients_on_the_cpu(),
            warnings.catch_warnings(),
        ):
            # torch.norm's way on devices that it does not name
            warnings.filterwarnings("ignore", "at::frobenius_norm")
            yield mode
    finally:
        optimizer._get_fused_kernels_supported_devices = fused
        delattr(torch, KIND)


@contextlib.contextmanager
def no_gradients_on_the_cpu():
    """Raise AssertionError where a gradient is taken of something that is not on ``SECOND``."""
    engine = torch.autograd.graph._engine_run_backward

    def run(outputs, *args, **kwargs):
        for output in outputs:
            value = output if isinstance(output, torch.Tensor) else output.node
            if isinstance(value, torch.Tensor) and not isinstance(value, Elsewhere):
                raise AssertionError(
                    f"a gradient is taken on the CPU, of a tensor of shape {tuple(value.shape)}: "
                    "what it was computed from was not made on the device"
                )
        return engine(outputs, *args, **kwargs)

    modules = [torch.autograd, torch.autograd.graph]
    before = [getattr(module, "_engine_run_backward", None) for module in modules]
    try:
        for module in modules:
            module._engine_run_backward = run
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module._engine_run_backward = value
