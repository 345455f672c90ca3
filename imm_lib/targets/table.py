"""Targets: what plays P̂(y|s), the restricted model, as rows of probabilities."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from imm_lib import checks, distributions
from imm_lib.precision import KeepsPrecision
from imm_lib.targets.kneser_ney import KneserNeyBigram

Target = Tensor | Callable[[Tensor], Tensor]
"""(S, Y) rows, or short -> (B, Y), of probabilities."""


def asked(function: Callable[[Tensor], Tensor], short: Tensor, contexts: object = None) -> Tensor:
    """``function(short)``, of a module in eval mode, whatever mode it is in: a parent's ``train()``
    reaches a teacher that is a part of it. Where it fails, the contexts may say what is wrong with
    ``short``.
    """
    parts = function.modules() if isinstance(function, nn.Module) else ()
    training = [part for part in parts if part.training]
    try:
        for part in training:
            part.training = False
        return function(short)
    except Exception:
        if hasattr(contexts, "support"):
            contexts.support(short[:1])
        raise
    finally:
        for part in training:
            part.training = True


class _Given(KeepsPrecision):
    """A table that is given, not learnt: checked when it is built, and again at the next call where
    it was changed in place. Not in ``state_dict``.
    """

    table: Tensor
    seen: int | None = None  # the version of the table that was checked

    def keep(self, table: Tensor) -> None:
        """Check a table and keep what is used of it; raises TypeError or ValueError."""
        kept = self._checked(table)
        self.hold(table=kept)
        self.seen = _version(kept)

    def _checked(self, table: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        table = getattr(self, "table", None)
        known = table is not None and _version(table) == self.seen
        super()._apply(fn, recurse)
        if known:  # a move or a cast changes nothing
            self.seen = _version(self.table)
        return self

    def rows(self, short: Tensor) -> Tensor:
        """(B,) ids -> (B, ...) rows of the table."""
        if (now := _version(self.table)) is not None and now != self.seen:
            self.keep(self.table)
        return self.table[checks.ids("short", short, len(self.table), ("target", self.table))]


def _version(table: Tensor) -> int | None:
    """How often the values were changed in place; None where nobody counts or may look."""
    if torch.compiler.is_compiling() or table.is_inference() or table.is_meta:
        return None
    return table._version


class TableTarget(_Given):
    """A (S, Y) table of P̂(y|s)."""

    def __init__(self, table: Tensor):
        super().__init__()
        _labels("target", checks.floating("target", table, "S", "Y", why=", or a callable"))
        self.keep(table)

    def _checked(self, table: Tensor) -> Tensor:
        rows = distributions.probabilities("target", table).detach()
        # a table in half precision stays one: its rows are normalised when they are looked up
        return checks.usable(table.detach()) if table.dtype in checks.HALF else rows

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        half = self.table.dtype in checks.HALF
        super()._apply(fn, recurse)
        if half and self.table.dtype not in checks.HALF:  # where rows are taken to sum to 1
            self.table = distributions.normalised(self.table)
        return self

    def forward(self, short: Tensor) -> Tensor:
        """(B,) ids -> (B, Y) rows of the table."""
        rows = self.rows(short)
        return distributions.normalised(rows) if rows.dtype in checks.HALF else rows


def _labels(name: str, rows: Tensor) -> None:
    """Raise ValueError unless there are at least two labels."""
    if rows.shape[1] < 2:
        raise ValueError(
            f"{name} must have a column for each of at least two labels, got "
            f"{checks.describe(rows)}; for the probability p of one of two labels give "
            "torch.stack([1 - p, p], 1)"
        )


class CallableTarget(nn.Module):
    """A function short -> (B, Y) probabilities. Every answer has its shape checked; its values, on
    a GPU, once.

    A module moves with the estimator but is not part of it: it is asked in eval mode, and neither
    ``parameters()``, nor ``state_dict()``, nor ``train()`` nor a cast to half precision reach it,
    since the target is given and not learnt.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], contexts: object = None):
        super().__init__()
        self.held = (function,)  # a tuple: not a submodule
        self.contexts = (contexts,)
        self.checked = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if isinstance(self.held[0], nn.Module):
            self.held[0]._apply(lambda value: value.to(fn(value).device))
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, short: Tensor) -> Tensor:
        """B short contexts -> (B, Y) probabilities."""
        rows = checks.floating("target(short)", asked(self.held[0], short, self.contexts[0]))
        checks.shaped("target(short)", rows, len(short), "Y")
        _labels("target(short)", rows)
        checks.same_device("target(short)", rows, "short", short)
        if not self.checked or checks.visible(rows):
            rows = distributions.probabilities("target(short)", rows)
            self.checked = True
            return rows
        return distributions.normalised(checks.usable(rows))


class MeanTarget(_Given):
    """A restricted regressor, its answers looked at; a table moves with the estimator."""

    def __init__(self, target: Target, contexts: object):
        super().__init__()
        function = None if isinstance(target, Tensor) else target
        self.given = function, contexts  # a tuple: not a submodule
        if isinstance(target, Tensor):
            self.keep(target)
            check_rows(self.table, contexts)
        elif not callable(target):
            raise TypeError(
                "target must be a (S, D) table or a callable short -> (B, D), got "
                f"{checks.describe(target)}"
            )

    def _checked(self, table: Tensor) -> Tensor:
        found = checks.values("target", table, "S", "D", why=checks.column(table))
        return checks.held("target", found).detach()

    @torch.no_grad()
    def forward(self, short: Tensor) -> Tensor:
        """(B, D) means."""
        function, contexts = self.given
        if function is None:
            return self.rows(short)
        found = asked(function, short, contexts)
        rows = checks.values("target(short)", found, len(short), "D", why=checks.column(found))
        checks.same_device("target(short)", rows, "short", short)
        return rows


def as_target(target: Target, contexts: object = None) -> nn.Module:
    """``target`` as a module short -> (B, Y) probabilities, of the short contexts of ``contexts``.

    Raises:
        TypeError: it is neither table nor callable.
        ValueError: a table that is none of probabilities, or that has not one row for each short
            context.
    """
    found = TableTarget(target) if isinstance(target, Tensor) else target
    if isinstance(found, TableTarget):
        check_rows(found.table, contexts)
    if isinstance(found, TableTarget | CallableTarget | KneserNeyBigram):
        return found
    hint = "; imm.from_sklearn makes a target of a classifier" * _is_classifier(target)
    if hint or not callable(target):
        came = checks.describe(target)
        raise TypeError(
            f"target must be a (S, Y) tensor or a callable short -> (B, Y), got {came}{hint}"
        )
    return CallableTarget(target, contexts)


def check_rows(table: Tensor, contexts: object) -> None:
    """Raise ValueError unless a table has one row for each short context of ``contexts``, if these
    can tell.
    """
    if not hasattr(contexts, "num_short"):
        return
    size = contexts.num_short
    if size is None:
        raise ValueError(
            "target must be a function of short, as the short contexts are continuous, got a table "
            f"{tuple(table.shape)}"
        )
    if size != len(table):
        raise ValueError(
            f"target must have one row for each of the {size} short contexts (num_short) of "
            f"contexts, got {tuple(table.shape)}; answers for data points are no table"
        )


def _is_classifier(target: object) -> bool:
    """Whether it is one of arrays, as scikit-learn's are, or the method that it is asked by."""
    owner = target
    if getattr(target, "__name__", "").startswith("predict"):
        owner = getattr(target, "__self__", None)
    return hasattr(owner, "predict_proba") and not isinstance(owner, nn.Module)
