"""Ranks of a ``torch.distributed`` process group whose batches count as one batch.

An estimator with a ``group`` returns on each rank the rank's share of the joint mean, times the
number of ranks: the mean of the ranks' gradients, which DistributedDataParallel and FSDP2 take, is
then the gradient of the joint batch. Its ``.risk`` is that of the joint batch, on every rank. All
ranks must call it equally often. ``group=None`` is one process, whatever is running;
``torch.distributed.group.WORLD`` are all ranks.

A step sends, beside the short contexts themselves: :class:`imm_lib.MovingAverageIMM` 2 × distinct
short contexts × labels numbers, a refresh of :class:`imm_lib.SerializedIMM` 2 × S × Y, the others a
number or two.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imm_lib import checks

Group = dist.ProcessGroup | None


def checked_group(group: Group) -> Group:
    """``group``, if this process belongs to it, or None; raises TypeError, ValueError."""
    if group is None:
        return None
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be a torch.distributed process group or None, got {group!r}")
    if dist.get_rank(group) < 0:
        raise ValueError("group must hold this process, got one that it is no rank of")
    return group


def ranks(group: Group) -> int:
    """How many ranks there are; one without a group."""
    return 1 if group is None else dist.get_world_size(group)


def summed(value: Tensor, group: Group) -> Tensor:
    """The sum of ``value`` over the ranks."""
    return _reduced(value, group, dist.ReduceOp.SUM)


def highest(value: Tensor, group: Group) -> Tensor:
    """The largest of ``value`` over the ranks, entry by entry."""
    return _reduced(value, group, dist.ReduceOp.MAX)


def _reduced(value: Tensor, group: Group, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if group is None:
        return value
    value = value.detach().clone()
    dist.all_reduce(value, operation, group)
    return value


def mean(value: Tensor, group: Group) -> Tensor:
    """The mean of the ranks' scalars: of what estimators return, the value for the joint batch, to
    be kept.
    """
    return checks.lasting(value) if group is None else summed(value, group) / ranks(group)


def share(count: int, like: Tensor, group: Group) -> Tensor | float:
    """What a mean over ``count`` own data points is multiplied by, so that the mean over the ranks
    is that over all their data points.
    """
    if group is None:
        return 1.0
    total = summed(like.new_tensor(float(count)), group)
    return count * ranks(group) / total


def gathered(short: Tensor, group: Group) -> tuple[Tensor, slice]:
    """(N, ...) the short contexts of all ranks, and which of them are this one's.

    Ranks may have different numbers of them. Waits for one number to come from a GPU.
    """
    if group is None:
        return short, slice(None)
    rank = dist.get_rank(group)
    sizes = short.new_zeros(ranks(group), dtype=torch.long)
    sizes[rank] = len(short)
    lengths = summed(sizes, group).tolist()
    padded = short.new_zeros(max(lengths), *short.shape[1:])
    padded[: len(short)] = short
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded, group)
    own = slice(sum(lengths[:rank]), sum(lengths[: rank + 1]))
    joint = [part[:length] for part, length in zip(parts, lengths, strict=True)]
    return torch.cat(joint), own


def dealt(distinct: Tensor, count: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """The short contexts that this rank runs for all, every n-th of the distinct ones, and their
    counts.

    At least one: a rank without any runs the first with a count of 0, since a model in shards needs
    every rank in each of its passes.
    """
    if group is None:
        return distinct, count
    rank = dist.get_rank(group)
    if rank >= len(distinct):
        return distinct[:1], count[:1] * 0
    return distinct[rank :: ranks(group)], count[rank :: ranks(group)]


def is_shard(value: object) -> bool:
    """Whether a tensor is this rank's part of a larger one, as FSDP2's parameters are."""
    return type(value).__name__ == "DTensor"


WRAPPERS = {"DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel"}
"""Classes of torch whose modules talk to other ranks in every forward and backward pass."""


def refuse_wrapped(module: nn.Module) -> None:
    """Raise ValueError for a module that is wrapped for several ranks.

    A pass that the backward pass runs again comes at a time when the wrappers expect none: the
    gradients of the ranks are then not reduced, and nothing says so.
    """
    if found := WRAPPERS & {kind.__name__ for kind in type(module).__mro__}:
        (name,) = found
        cure = "call the inner module, .module" if name.startswith("Dist") else "sequential=False"
        raise ValueError(
            f"query must not run a {name} when sequential=True, as its ranks would not be reduced: "
            f"{cure}"
        )
