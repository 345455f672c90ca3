"""The sampled IMM risk with the activations of one extended context at a time (Appendix C.2).

The forward pass keeps only the running log-sum of the k contexts. The backward pass runs each
context again, with the random state it had, and feeds it the cached gradient of the risk with
respect to its log-probabilities: that by log Q̂, -target for the cross-entropy, times the
crosstalk. Time: one extra forward pass. Memory: independent of k.

The second run has to be the first: random state, autocast and the modes of modules are replayed.
Weights that were changed in between are refused, as by joint autograd; so is another answer, where
looking at it makes no GPU wait.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from imm_lib import checks
from imm_lib.checks import accumulator
from imm_lib.distributed import refuse_wrapped
from imm_lib.divergences import Divergence, pull
from imm_lib.induced import cross_entropy

LOOK = 2**10
"""Entries by which the answer of the second run is compared with that of the first."""


class _Surroundings:
    """The random state, autocast settings and modes of modules a forward pass depends on, to be
    replayed around its second run.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu_state = torch.get_rng_state()
        self.state = self._of_accelerator()
        self.autocast = (
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
        )
        self.modes: dict[nn.Module, bool] = {}

    def _of_accelerator(self, state: Tensor | None = None) -> Tensor | None:
        """The random state of the accelerator, after it has been set if one is given; None on a
        CPU.
        """
        if self.device.type == "cpu":
            return None
        module = torch.get_device_module(self.device)
        where = () if self.device.type == "mps" else (self.device,)  # it has one device only
        if state is not None:
            module.set_rng_state(state, *where)
        return module.get_rng_state(*where)

    def _note(self, module: nn.Module, _inputs: object) -> None:
        refuse_wrapped(module)
        if not torch.compiler.is_compiling():
            for part in module.modules() if hasattr(module, "_orig_mod") else [module]:
                self.modes.setdefault(part, part.training)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Around the first run: remember the mode of every module that is called."""
        hook = nn.modules.module.register_module_forward_pre_hook(self._note)
        try:
            yield
        finally:
            hook.remove()

    @contextlib.contextmanager
    def replay(self) -> Iterator[None]:
        """Around the second run; what surrounds it is restored."""
        enabled, dtype = self.autocast
        now = {module: module.training for module in self.modes}
        state = self._of_accelerator()
        with (
            torch.random.fork_rng(devices=[]),
            torch.autocast(self.device.type, dtype, enabled),
        ):
            torch.set_rng_state(self.cpu_state)
            self._of_accelerator(self.state)
            try:
                for module, mode in self.modes.items():
                    module.training = mode
                yield
            finally:
                for module, mode in now.items():
                    module.training = mode
                self._of_accelerator(state)


class _Versions:
    """What the passes were computed from, to be found unchanged by the second run."""

    def __init__(self, leaves: Sequence[Tensor], modules: Iterable[nn.Module]):
        frozen = [p for module in modules for p in module.parameters(recurse=False)]
        kept = {id(t): t for t in (*leaves, *frozen) if not t.is_inference()}
        self.seen = [(t, t._version) for t in kept.values()]

    def check(self) -> None:
        """Raise RuntimeError if a tensor has been changed in place."""
        for tensor, version in self.seen:
            if tensor._version != version:
                raise RuntimeError(
                    "a tensor needed for the sequential risk's gradient has been modified by an "
                    f"in-place operation: shape {tuple(tensor.shape)} is at version "
                    f"{tensor._version}, expected {version}; run backward before the weights change"
                )


def _same(now: dict[int, Tensor], before: dict[int, Tensor]) -> None:
    """Raise RuntimeError if a parameter of the first run is missing in the second."""
    gone = [p for key, p in before.items() if isinstance(p, nn.Parameter) and key not in now]
    if gone or (before and not now):
        raise RuntimeError(
            f"{len(gone) or len(before)} of the parameters that the sequential risk was computed "
            "from are no longer used or want no gradient; run backward before the model changes"
        )


def _some(log_q: Tensor) -> Tensor | None:
    """At most LOOK entries of an answer, evenly spaced; None where a look would make a GPU wait."""
    if not checks.visible(log_q):
        return None
    entries = log_q.detach().reshape(-1)
    return entries[:: -(-len(entries) // LOOK)].clone()


def _alike(now: Tensor | None, before: Tensor | None) -> None:
    """Raise RuntimeError if the second run has another answer than the first."""
    if now is None or before is None or torch.allclose(now, before, rtol=1e-3, atol=1e-3):
        return
    raise RuntimeError(
        "query must answer in the backward pass as it did in the forward pass when "
        "sequential=True, got another answer: its data were changed in place, or it draws from a "
        "generator of its own"
    )


def _refuse(log_q: Tensor) -> None:
    """Raise ValueError for derivatives that a replay has not, forward mode and torch.func, and for
    a re-entrant checkpoint, which hides the parameters inside.
    """
    if any(node.name() == "CheckpointFunctionBackward" for node in _nodes(log_q)):
        raise ValueError(
            "query must not use re-entrant checkpoints when sequential=True, as the parameters "
            "inside would get no gradient: checkpoint with use_reentrant=False"
        )
    dual = forward_ad._current_level >= 0 and forward_ad.unpack_dual(log_q).tangent is not None
    if dual or checks.transformed(log_q):
        raise ValueError(
            "sequential=True has reverse-mode derivatives only: under torch.func and forward-mode "
            "differentiation take sequential=False"
        )


def _nodes(output: Tensor) -> Iterator[Any]:
    """The nodes of the graph that ``output`` was computed by."""
    seen: set[Any] = set()
    stack: list[Any] = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(parent for parent, _ in node.next_functions)


def leaves_of(output: Tensor) -> dict[int, Tensor]:
    """The leaf tensors that ``output`` was computed from and that want a gradient, by id."""
    if output.grad_fn is None:
        return {id(output): output} if output.requires_grad else {}
    found: dict[int, Tensor] = {}
    for node in _nodes(output):
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
    return found


def _now() -> int:
    """The number that autograd gives to the next node it makes here; in inference mode it makes
    none.
    """
    if torch.is_inference_mode_enabled():
        return 0
    with torch.enable_grad():
        node: Any = torch.zeros((), requires_grad=True).clone().grad_fn
    return node._sequence_nr()


def _reaches_back(output: Tensor, begun: int) -> bool:
    """Whether the graph of ``output`` goes on into one that was there before."""
    return any(
        node._sequence_nr() < begun for node in _nodes(output) if not hasattr(node, "variable")
    )


class _Replay(torch.autograd.Function):
    """The risk as a function of the leaves behind it; its backward pass runs the k contexts again,
    one by one.
    """

    @staticmethod
    def forward(ctx, risk, weight, log_sum, passes, versions, reaches_back, *leaves):
        ctx.passes, ctx.versions, ctx.leaves = passes, versions, leaves
        ctx.reaches_back = reaches_back
        ctx.save_for_backward(weight, log_sum)
        return risk.clone()

    @staticmethod
    def backward(ctx, grad_risk):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "sequential=True can be differentiated once: with create_graph=True take "
                "sequential=False"
            )
        weight, log_sum = ctx.saved_tensors
        ctx.versions.check()
        scale = -weight * grad_risk.unsqueeze(-1)
        # where no context gives a label any probability, its crosstalk is 0/0; joint autograd has 0
        # there too
        log_sum = log_sum.masked_fill(log_sum == -math.inf, 0.0)
        total: list[Tensor | None] = [None] * len(ctx.leaves)
        for run, surroundings, before, answer in ctx.passes:
            with torch.enable_grad(), surroundings.replay():
                log_q = run()
            _same(leaves_of(log_q), before)
            _alike(_some(log_q), answer)
            if not log_q.requires_grad:
                continue
            cached = scale * (accumulator(log_q.detach()) - log_sum).exp()
            # a graph that the caller built may be used again; a compiled model's cannot be kept
            grads = torch.autograd.grad(
                log_q,
                ctx.leaves,
                cached.to(log_q.dtype),
                retain_graph=ctx.reaches_back,
                allow_unused=True,
            )
            for place, grad in enumerate(grads):
                if grad is not None:
                    total[place] = grad.clone() if total[place] is None else total[place].add_(grad)
            # or this pass's activations and gradients would still be there during the next
            del log_q, cached, grads, grad
        return None, None, None, None, None, None, *total


def sequential_risk(
    target: Tensor, passes: Sequence[Callable[[], Tensor]], divergence: Divergence = cross_entropy
) -> Tensor:
    """:func:`imm_lib.imm_risk` of k extended contexts, each computed by one of ``passes`` and
    forgotten.

    Args:
        target: (D, Y) probabilities, on the device where the passes run.
        passes: k functions of no argument, each returning the (D, Y) log-probabilities in one
            extended context of every short context. Each is called once here and once in the
            backward pass; what it draws from torch's default generators (dropout) is replayed, what
            it draws from a generator of its own is not.
        divergence: between target and induced model; see :mod:`imm_lib.divergences`.

    Returns:
        (D,) risks, differentiable once with respect to every leaf behind the passes.

    Raises:
        ValueError: no passes, a pass that runs a module wrapped for several ranks or a re-entrant
            checkpoint, forward-mode differentiation or torch.func.
        RuntimeError: in the backward pass, where a weight behind the passes has been changed in
            place since, or is no longer one, or with ``create_graph=True``; on a CPU also where a
            pass has another answer than before.
    """
    leaves: dict[int, Tensor] = {}
    modules: dict[nn.Module, bool] = {}
    done: list[tuple[Callable[[], Tensor], _Surroundings, dict[int, Tensor], Tensor | None]] = []
    log_sum: Tensor | None = None
    reaches_back, begun = False, _now()
    for run in passes:
        surroundings = _Surroundings(target.device)
        with surroundings.watched():
            log_q = run()
        _refuse(log_q)
        reaches_back |= _reaches_back(log_q, begun)
        found = leaves_of(log_q)
        done.append((run, surroundings, found, _some(log_q)))
        leaves |= found
        modules |= surroundings.modes
        log_q = accumulator(log_q.detach())
        log_sum = log_q if log_sum is None else torch.logaddexp(log_sum, log_q)
        del log_q
    if log_sum is None:
        raise ValueError("passes must hold at least one, got none")
    target = target.to(log_sum.dtype)
    log_induced = log_sum - math.log(len(done))
    risk, weight = divergence(target, log_induced), pull(divergence, target, log_induced)
    if not leaves:
        return risk
    versions = _Versions(list(leaves.values()), modules)
    return _Replay.apply(risk, weight, log_sum, done, versions, reaches_back, *leaves.values())
