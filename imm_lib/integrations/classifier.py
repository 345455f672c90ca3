"""A fitted classifier on some columns of a table as the restricted model."""

import warnings
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.contexts import Contexts, GroupedContexts
from imm_lib.integrations.tables import Coding, _few, is_frame, select
from imm_lib.mixed import MixedContexts
from imm_lib.precision import KeepsPrecision

NEIGHBOURS = 15
"""Effective extended contexts of a short context, on average, that a bandwidth is chosen for."""


def from_sklearn(
    model: Any,
    frame: Any,
    columns: Sequence[Hashable] | Hashable,
    classes: Sequence[Hashable] | None = None,
    *,
    categorical: Iterable[Hashable] = (),
    bandwidth: float | None = None,
) -> "tuple[ClassifierTarget, Contexts, Tensor]":
    """A fitted classifier that reads some columns, as the restricted model of a table's rows.

    Numbers (also integers) are compared by a Laplace kernel, everything else (strings, booleans,
    pandas' categories, also of numbers) by equality; a missing value is a level of its own. The
    classifier is asked once for every distinct row, in the types of ``frame`` where these hold its
    numbers, and its answers are kept.

    Args:
        model: fitted, with ``predict_proba`` and ``classes_``: a scikit-learn classifier, a
            pipeline or a search.
        frame: (n rows) the training data of the *full* model: a pandas DataFrame, a 2-D array, a
            tensor or a scipy sparse matrix. The model was fitted on other rows.
        columns: what the model reads, in its order: names, or positions in an array.
        classes: the labels in the order of the full model's outputs; by default ``classes_``.
        categorical: columns that hold numbers but are categories.
        bandwidth: width of the kernel of each number, in its standard deviations over the rows. By
            default it is chosen so that a short context has about 15 effective extended contexts
            (1 / Σ π(e|s)²), or a third of those with its categories.

    Returns:
        ``target``, a :class:`~imm_lib.integrations.classifier.ClassifierTarget`: P̂(y|s), and
        ``target.encode(frame)`` for the short contexts of other rows, ``target.label_ids(labels)``
        for labels.
        ``contexts``: :class:`imm_lib.MixedContexts`, or :class:`imm_lib.GroupedContexts` where no
        column is a number.
        ``short``: the short contexts of the rows: (n, 1 + d) float64, the combination of
        categories and the numbers in their own units; (n,) ids where no column is a number, so that
        the table estimators take them too, with ``num_short = target.num_short``.

    Raises:
        TypeError, ValueError: a model that is not fitted, has no probabilities or several outputs,
            or cannot be asked about these columns; columns that are not there or there twice;
            times, decimals or unhashable values, or a column with both None and NaN; labels that
            differ from the model's.

    Warns:
        UserWarning: most rows have categories that no other row has, as with ids.

    >>> import numpy as np
    >>> class Scorecard:                          # anything with predict_proba and classes_
    ...     classes_ = np.array(["bad", "good"])
    ...     def predict_proba(self, x):
    ...         return np.where(x == "yes", [[0.2, 0.8]], [[0.6, 0.4]]).astype(float)
    >>> frame = np.array([["yes", "7"], ["no", "8"], ["yes", "9"]])
    >>> target, contexts, short = from_sklearn(Scorecard(), frame, [0], classes=["good", "bad"])
    >>> target(short)
    tensor([[0.8000, 0.2000],
            [0.4000, 0.6000],
            [0.8000, 0.2000]], dtype=torch.float64)
    """
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        columns = [columns]
    columns = [column.item() if isinstance(column, np.generic) else column for column in columns]
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"columns must name different columns, at least one, got {columns!r}")
    if isinstance(categorical, str) or not isinstance(categorical, Iterable):
        categorical = [categorical]
    labels = _labels(model, classes)
    _fits(model, frame, columns)
    table = select(frame, columns)
    if unread := _unread(model, columns):
        raise ValueError(
            f"columns must be those that the model reads, got also {_few(unread)}: contexts would "
            "condition on what it does not know"
        )
    coding = Coding.of(table, columns, categorical)
    target = ClassifierTarget(model, coding, labels)
    short = target.encode(frame)
    target(short)  # asks the model now, so that what it cannot answer is told here
    group = short if short.dim() == 1 else short[:, 0].long()
    _warn_if_alone(group, coding)
    if short.dim() == 1:
        return target, GroupedContexts(short, target.num_short), short
    values = short[:, 1:]
    unit = torch.from_numpy(coding.spread(table))
    if bandwidth is None:
        bandwidth = _choose(values / unit, group)
    bandwidth = checks.number("bandwidth", bandwidth, 0, open_low=True)
    return target, MixedContexts(values, group, bandwidth * unit), short


class ClassifierTarget(KeepsPrecision):
    """What :func:`imm_lib.from_sklearn` makes of a classifier: a target short -> (B, Y)
    probabilities that keeps its answers.

    Attributes:
        classes: the labels, in the order of the probabilities.
        num_short: how many short contexts there are where no column is a number, else None.
    """

    table: Tensor

    def __init__(self, model: Any, coding: Coding, classes: list):
        super().__init__()
        # in a tuple, since a module would become a submodule
        self.model, self.coding, self.classes = (model,), coding, classes
        there = np.asarray(model.classes_).tolist()
        self.order = [there.index(label) for label in classes]
        self.known: dict[bytes, int] = {}
        self.num_short = None if any(coding.numeric) else len(coding.keys)
        self.hold(table=torch.zeros(0, len(classes), dtype=torch.float64))

    def forward(self, short: Tensor) -> Tensor:
        """Short contexts, as ``encode`` gives them -> (B, Y) float64 probabilities."""
        if self.num_short is not None:
            short = checks.ids("short", short, self.num_short)
            if len(self.table) == 0:
                self._ask(np.arange(self.num_short), np.zeros((self.num_short, 0)))
            return self.table.to(short.device)[short]
        group, values = self._parts(short)
        rows = np.concatenate([group[:, None], values], 1)
        keys = [row.tobytes() for row in rows]
        new = {key: place for place, key in enumerate(keys) if key not in self.known}
        if new:
            places = list(new.values())
            first = len(self.table)
            self._ask(group[places], values[places])
            self.known |= {key: first + place for place, key in enumerate(new)}
        index = torch.tensor([self.known[key] for key in keys], device=self.table.device)
        return self.table[index].to(short.device)

    def encode(self, frame: Any) -> Tensor:
        """The short contexts of other rows, for instance of held-out ones.

        Raises:
            TypeError, ValueError: a frame without the columns, or rows with categories that no
                training row has together: they have no extended context. :meth:`seen` tells which.
        """
        table = select(frame, self.coding.columns)
        group = self.coding.groups(table)
        if (group < 0).any():
            first = self.coding.told(table, int((group < 0).argmax()))
            raise ValueError(
                f"{(group < 0).sum()} of {len(group)} rows have categories, or a combination, that "
                f"no training row has; the first: {first}. They have no extended contexts: leave "
                "them out, with frame[target.seen(frame)]"
            )
        if self.num_short is not None:
            return torch.from_numpy(group)
        return torch.from_numpy(np.concatenate([group[:, None], self.coding.values(table)], 1))

    def seen(self, frame: Any) -> np.ndarray:
        """(n,) booleans: the rows whose categories a training row has, all together."""
        return self.coding.groups(select(frame, self.coding.columns)) >= 0

    def decode(self, short: Tensor) -> Any:
        """The columns that short contexts stand for, as a DataFrame or an array like ``frame``."""
        if checks.tensor("short", short).dim() > 0 and len(short) == 0:
            return self.coding.empty.copy()
        return self.coding.decode(*self._parts(short))

    def label_ids(self, labels: Any) -> Tensor:
        """(n,) labels -> (n,) ids in the order of ``classes``; raises ValueError for others."""
        number = {label: place for place, label in enumerate(self.classes)}
        if np.ndim(labels) != 1:
            raise ValueError(f"labels must be (n,), got {checks.describe(labels)}")
        values = list(labels.tolist() if hasattr(labels, "tolist") else labels)
        if unknown := {label for label in values if label not in number}:
            raise ValueError(f"labels must be among {_few(self.classes)}, got {_few(unknown)}")
        return torch.tensor([number[label] for label in values], dtype=torch.long)

    def _parts(self, short: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(B,) combinations of categories and (B, d) numbers."""
        if self.num_short is not None:
            group = checks.ids("short", short, self.num_short).cpu().numpy()
            return group, np.zeros((len(group), 0))
        width = 1 + sum(self.coding.numeric)
        checks.floating("short", short, "B", width, why=", as target.encode(frame) gives it")
        distributions.resolves("short", short, len(self.coding.keys) - 1)
        rows = short.detach().cpu().double().numpy() + 0.0  # no -0
        group, values = rows[:, 0], rows[:, 1:]
        if not (
            np.isin(group, np.arange(len(self.coding.keys))).all() and np.isfinite(values).all()
        ):
            raise ValueError(
                "short must hold combinations of categories in "
                f"[0, {len(self.coding.keys)}) and finite numbers, got others"
            )
        return group.astype(np.int64), values

    def _ask(self, group: np.ndarray, values: np.ndarray) -> None:
        """Add the model's answers for these rows to the table."""
        (model,), asked = self.model, self.coding.decode(group, values)
        if is_frame(asked):
            names = getattr(model, "feature_names_in_", None)
            if names is None:
                fitted_on_array = hasattr(model, "n_features_in_")
                asked = asked.to_numpy() if fitted_on_array else asked
            elif set(names) == set(asked.columns):
                asked = asked[list(names)]
        try:
            rows = np.asarray(model.predict_proba(asked), dtype=np.float64)
        except Exception as error:
            raise ValueError(
                f"model cannot be asked about the columns {_few(self.coding.columns)}: {error}"
            ) from error
        if rows.shape != (len(group), len(self.order)):
            raise ValueError(
                f"model.predict_proba must give {(len(group), len(self.order))}, a column for each "
                f"of classes_, got {rows.shape}"
            )
        found = torch.from_numpy(rows[:, self.order])
        distributions.probabilities("model.predict_proba", found)
        self.table = torch.cat([self.table, found.to(self.table.device)])


def _labels(model: Any, classes: Sequence[Hashable] | None) -> list:
    """The labels in the wanted order, for a model that knows these and can be asked."""
    if isinstance(model, type):
        raise TypeError(f"model must be a fitted classifier, got the class {model.__name__}")
    if isinstance(model, np.ndarray | Tensor | list) or is_frame(model):
        raise TypeError(
            "model must be the fitted classifier itself, got numbers: answers of predict_proba for "
            "some rows are no table of short contexts"
        )
    if not hasattr(model, "predict_proba"):
        known = (
            "; put it into CalibratedClassifierCV" if hasattr(model, "decision_function") else ""
        )
        raise TypeError(f"model must have predict_proba, {type(model).__name__} has none{known}")
    if not hasattr(model, "classes_"):
        raise ValueError(f"model must be fitted, {type(model).__name__} has no classes_ yet")
    if isinstance(model.classes_, list) and any(np.ndim(part) for part in model.classes_):
        raise ValueError("model must have one output, got several: take one restricted model each")
    there = np.asarray(model.classes_).tolist()
    if len(there) < 2:
        raise ValueError(f"model must know at least two classes, got {there!r}")
    if classes is None:
        return there
    wanted = [label.item() if isinstance(label, np.generic) else label for label in classes]
    kinds = {type(label) for label in wanted} ^ {type(label) for label in there}
    if len(wanted) != len(there) or set(wanted) != set(there) or (bool in kinds):
        raise ValueError(
            f"classes must be the model's labels in your order: it knows {_few(there)}, "
            f"got {_few(wanted)}"
        )
    return wanted


def _fits(model: Any, frame: Any, columns: list) -> None:
    wanted = getattr(model, "n_features_in_", None)
    names = getattr(model, "feature_names_in_", None)
    if names is not None and not is_frame(frame):
        raise ValueError(
            f"frame must be a DataFrame, as the model was fitted on names: {_few(names.tolist())}"
        )
    if wanted is not None and names is None and wanted != len(columns):
        raise ValueError(
            f"columns must be the {wanted} that the model was fitted on, got {len(columns)}"
        )


def _unread(model: Any, columns: list) -> list:
    """The columns that the model was not fitted on, or that its first step drops."""
    model = getattr(model, "best_estimator_", model)
    names = getattr(model, "feature_names_in_", None)
    if names is None:
        return []
    read, dropped = set(names), set()
    first = model.steps[0][1] if hasattr(model, "steps") else model
    for _, kind, chosen in getattr(first, "transformers_", ()):
        if isinstance(kind, str) and kind == "drop":
            chosen = [chosen] if isinstance(chosen, str) else chosen
            dropped |= set(names[chosen]) if isinstance(chosen, slice) else _named(chosen, names)
    return [column for column in columns if column not in read - dropped]


def _named(chosen: Iterable, names: np.ndarray) -> set:
    """Columns given by their names, their places or a mask, by their names."""
    chosen = list(chosen)
    if all(isinstance(item, str) for item in chosen):
        return set(chosen)
    return set(names[np.asarray(chosen)])


def _warn_if_alone(group: Tensor, coding: Coding) -> None:
    """Warn where categories leave most rows alone, as ids do, or numbers stored as text."""
    alone = int((torch.bincount(group) == 1).sum())
    if not all(coding.numeric) and 2 * alone > len(group):
        names = [
            n for n, numeric in zip(coding.columns, coding.numeric, strict=True) if not numeric
        ]
        warnings.warn(
            f"{alone} of {len(group)} rows have categories that no other row has (columns "
            f"{_few(names)}): there is nothing to average over, and IMM is reverse distillation",
            stacklevel=3,
        )


def _choose(values: Tensor, group: Tensor) -> float:
    """The bandwidth, in the units of ``values``, that gives about ``NEIGHBOURS`` effective extended
    contexts; a bisection over at most 256 of the rows.
    """
    looked = torch.linspace(0, len(values) - 1, min(len(values), 256)).long()
    size = torch.bincount(group)[group[looked]].double()
    wanted = (size / 3).clamp(1, NEIGHBOURS).mean()
    short = torch.cat([group[looked].unsqueeze(1).to(values), values[looked]], 1)
    low, high = 0.01, 100.0
    for _ in range(20):
        middle = (low * high) ** 0.5
        log_w = MixedContexts(values, group, middle).log_weights(short)
        if (-torch.logsumexp(2 * log_w, 1)).exp().mean() < wanted:
            low = middle
        else:
            high = middle
    return high
