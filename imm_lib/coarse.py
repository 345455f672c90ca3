"""Restricted models of coarser labels: some of the full model's labels are one to them."""

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.sums import segment_logsumexp


def coarsen(log_q: Tensor, labels: Tensor) -> Tensor:
    """log P of coarser labels: the log-sum-exp over the labels that a map makes one.

    For every estimator: where it takes log-probabilities, give it ``coarsen(log_q, labels)``; where
    it takes a query, ``lambda short, extended: coarsen(query(short, extended), labels)``. Averaging
    over extended contexts and merging labels commute, so that it makes no difference which comes
    first. A loss on the full model's own labels is not touched.

    Args:
        log_q: (..., Y) log-probabilities in nats.
        labels: (Y,) the coarse label of each label, in [0, Y'); every one of them occurs.

    Returns:
        (..., Y') log-probabilities.

    Raises:
        TypeError: ``log_q`` is not floating-point, or ``labels`` are no integers.
        ValueError: a map of another length, which leaves a label out, or one to which no label is
            mapped.

    >>> log_q = torch.tensor([0.5, 0.2, 0.3]).log()
    >>> coarsen(log_q, torch.tensor([0, 1, 1])).exp()
    tensor([0.5000, 0.5000])
    """
    log_q = checks.accumulator(distributions.log_probabilities("log_q", log_q, ..., "Y"))
    labels = checks.held("labels", checks.ids("labels", labels, beside=("log_q", log_q)))
    checks.shaped("labels", labels, log_q.shape[-1], why=", to map each label, leaving none out")
    size = int(labels.max()) + 1
    empty = torch.bincount(labels, minlength=size) == 0
    if empty.any():
        raise ValueError(
            f"labels must map some label to each of 0 .. {size - 1}, got none for "
            f"{int(empty.nonzero()[0])}"
        )
    rows = segment_logsumexp(log_q.movedim(-1, 0).reshape(len(labels), -1), labels, size)
    return rows.reshape(size, *log_q.shape[:-1]).movedim(0, -1)
