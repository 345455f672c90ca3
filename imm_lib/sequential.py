"""The sampled IMM risk with the activations of one extended context at a time (Appendix C.2).

The forward pass keeps only the running log-sum of the k contexts. The backward pass runs each
context again, with the random state it had, and feeds it the cached gradient of the risk with
respect to its log-probabilities: that by log Q̂, -target for the cross-entropy, times the
crosstalk. Time: one extra forward pass. Memory: independent of k.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from imm_lib import checks
from imm_lib.distributed import only_bare_modules
from imm_lib.divergences import Divergence, pull
from imm_lib.induced import accumulator, cross_entropy


class _Surroundings:
    """The random state and autocast settings a forward pass depends on, to be replayed around its
    second run.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu_state = torch.get_rng_state()
        self.cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.autocast = (
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
        )

    @contextlib.contextmanager
    def replay(self) -> Iterator[None]:
        enabled, dtype = self.autocast
        devices = [self.device] if self.cuda_state is not None else []
        with (
            torch.random.fork_rng(devices=devices),
            torch.autocast(self.device.type, dtype, enabled),
        ):
            torch.set_rng_state(self.cpu_state)
            if self.cuda_state is not None:
                torch.cuda.set_rng_state(self.cuda_state, self.device)
            yield


def _refuse_transforms(log_q: Tensor) -> None:
    """Raise ValueError for derivatives that a replay has not: forward mode, and torch.func."""
    dual = forward_ad._current_level >= 0 and forward_ad.unpack_dual(log_q).tangent is not None
    if dual or checks.transformed(log_q):
        raise ValueError(
            "sequential=True has reverse-mode derivatives only: under torch.func and forward-mode "
            "differentiation take sequential=False"
        )


def _now() -> int:
    """The number that autograd gives to the next node it makes."""
    with torch.enable_grad():
        node: Any = torch.zeros((), requires_grad=True).clone().grad_fn
    return node._sequence_nr()


def _leaves(output: Tensor, begun: int) -> tuple[dict[int, Tensor], bool]:
    """The leaf tensors that ``output`` was computed from and that want a gradient, by id; and
    whether its graph reaches back into one that was there before ``begun``.
    """
    if output.grad_fn is None:
        return {id(output): output} if output.requires_grad else {}, False
    reaches_back = False
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    stack: list[Any] = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "query must not use re-entrant checkpoints when sequential=True, as the parameters "
                "inside would get no gradient: checkpoint with use_reentrant=False"
            )
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        else:
            reaches_back |= node._sequence_nr() < begun
        stack.extend(parent for parent, _ in node.next_functions)
    return found, reaches_back


class _Replay(torch.autograd.Function):
    """The risk as a function of the leaves behind it; its backward pass runs the k contexts again,
    one by one.
    """

    @staticmethod
    def forward(ctx, risk, weight, log_sum, passes, surroundings, reaches_back, *leaves):
        ctx.passes, ctx.surroundings, ctx.leaves = passes, surroundings, leaves
        ctx.reaches_back = reaches_back
        ctx.save_for_backward(weight, log_sum)
        return risk.clone()

    @staticmethod
    def backward(ctx, grad_risk):
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "sequential=True can be differentiated once: with create_graph=True take "
                "sequential=False"
            )
        weight, log_sum = ctx.saved_tensors
        scale = -weight * grad_risk.unsqueeze(-1)
        # where no context gives a label any probability, its crosstalk is 0/0; joint autograd has 0
        # there too
        log_sum = log_sum.masked_fill(log_sum == -math.inf, 0.0)
        total: list[Tensor | None] = [None] * len(ctx.leaves)
        for run, surroundings in zip(ctx.passes, ctx.surroundings, strict=True):
            with torch.enable_grad(), surroundings.replay():
                log_q = run()
            if not log_q.requires_grad:
                continue
            cached = scale * (accumulator(log_q.detach()) - log_sum).exp()
            # a graph that the caller built may still be used; a compiled model keeps none
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
        ValueError: no pass, a pass that runs a module wrapped for several ranks or a re-entrant
            checkpoint, forward-mode differentiation or torch.func.
        RuntimeError: in a backward pass with ``create_graph=True``.
    """
    leaves: dict[int, Tensor] = {}
    surroundings: list[_Surroundings] = []
    log_sum: Tensor | None = None
    reaches_back, begun = False, _now()
    for run in passes:
        surroundings.append(_Surroundings(target.device))
        with only_bare_modules():
            log_q = run()
        _refuse_transforms(log_q)
        found, back = _leaves(log_q, begun)
        leaves |= found
        reaches_back |= back
        log_q = accumulator(log_q.detach())
        log_sum = log_q if log_sum is None else torch.logaddexp(log_sum, log_q)
        del log_q
    if log_sum is None:
        raise ValueError("passes must hold at least one, got none")
    target = target.to(log_sum.dtype)
    log_induced = log_sum - math.log(len(passes))
    risk, weight = divergence(target, log_induced), pull(divergence, target, log_induced)
    return (
        _Replay.apply(risk, weight, log_sum, passes, surroundings, reaches_back, *leaves.values())
        if leaves
        else risk
    )
