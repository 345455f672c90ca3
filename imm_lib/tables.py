"""What the estimators with a table of Q̂ share: checks of sizes, short contexts and sweeps."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from imm_lib import checks
from imm_lib.checks import HALF
from imm_lib.distributed import Group, checked_group
from imm_lib.precision import KeepsPrecision
from imm_lib.targets import KneserNeyBigram
from imm_lib.targets.table import TableTarget, Target, as_target


def check_sizes(module: nn.Module, state: dict, prefix: str, *_: object) -> None:
    """Refuse a state_dict of another size, or with one of table and visited alone, before anything
    of it is loaded here. A table that was cast to half precision comes back out of it.

    What a parent's ``load_state_dict`` has visited before this module is then loaded: torch has no
    earlier hook.
    """
    names = ("table", "visited")
    there = [name for name in names if prefix + name in state]
    if len(there) == 1:
        raise ValueError(f"state_dict must hold table and visited together, got {there[0]} alone")
    for name in there:
        came = checks.tensor(f"state_dict[{prefix + name!r}]", state[prefix + name])
        if came.shape != getattr(module, name).shape:
            raise ValueError(
                f"state_dict[{prefix + name!r}] must be {tuple(getattr(module, name).shape)}, got "
                f"{tuple(came.shape)}"
            )
        if came.dtype in HALF:
            state[prefix + name] = came.to(getattr(module, name).dtype)


class RunningTable(KeepsPrecision):
    """A module with a table of averages that outlives the batch, and which short contexts it has
    visited.
    """

    table: Tensor
    visited: Tensor
    risk: Tensor | None

    def match(self, target: Target, num_short: int, num_labels: int, group: Group) -> None:
        """Take a target of S short contexts and Y labels; raises TypeError, ValueError for another,
        as far as that is known.
        """
        shape = checks.count("num_short", num_short), checks.count("num_labels", num_labels)
        self.shape, self.group, self.risk = shape, checked_group(group), None
        self.target = as_target(target)
        found: tuple[int, ...] = shape
        if isinstance(self.target, TableTarget):
            found = tuple(self.target.table.shape)
        elif isinstance(self.target, KneserNeyBigram):
            found = (self.target.vocab_size,) * 2
        if found != shape:
            raise ValueError(f"target must be (num_short, num_labels) = {shape}, got {found}")

    def target_rows(self, short: Tensor) -> Tensor:
        """(G,) ids -> (G, Y) probabilities of the target, checked to be of so many labels."""
        rows = self.target(short)
        labels = self.shape[1]
        why = f", with num_labels = {labels}"
        checks.shaped("target(short)", rows, len(short), labels, why=why)
        return rows.to(self.table.dtype)

    def make_table(self, size: tuple[int, ...], num_short: int) -> None:
        """Register the table and the (S,) visited short contexts; nothing is known yet."""
        self.register_buffer("table", torch.empty(size))
        self.register_buffer("visited", torch.empty(num_short, dtype=torch.bool))
        self.register_load_state_dict_pre_hook(check_sizes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Forget the table, for instance after ``to_empty``. NaN, so that a row used before its
        first visit shows instead of passing for a probability.
        """
        self.table.fill_(math.nan)
        self.visited.fill_(False)

    def moves(self, value: Tensor) -> bool:
        """Whether a call moves the table: in train mode, but for a checkpoint's second forward
        pass, at which it has moved. Raises ValueError under torch.func.
        """
        if self.training and checks.transformed(value):
            raise ValueError(
                f"{type(self).__name__} must be in eval mode under torch.func, whose functions may "
                "not move a table"
            )
        return self.training and not checks.in_backward()


def check_visited(visited: Tensor, short: Tensor, when: str, counts: Tensor | None = None) -> None:
    """Raise ValueError for short contexts of a CPU that the table does not have yet, but for those
    of data points that ``counts`` (B,) has 0 for.
    """
    if not checks.visible(short):
        return
    unknown = ~visited[short] if counts is None else ~visited[short] & (counts > 0)
    if unknown.any():
        unseen = short[unknown][0].item()
        raise ValueError(f"short has a context that was never visited {when}: {unseen}")


def pairs_of(batches: object, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs of ``batches``, one after another; raises TypeError naming what is not one."""
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be an iterable of ({name}, short) pairs, got {checks.describe(batches)}"
        )
    for pair in batches:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"batches must hold ({name}, short) pairs, got {checks.describe(pair)}")
        yield tuple(pair)
