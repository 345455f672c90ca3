"""What is read off the accuracies of many runs: the worth of a method in data."""

import numpy as np
import torch
from torch import Tensor

from imm_lib import checks


def equal_accuracy(sizes: Tensor, baseline: Tensor, accuracy: Tensor) -> Tensor:
    """The data size at which the baseline's mean accuracy is ``accuracy``: log-linear between
    sizes.

    Args:
        sizes: (N,) increasing.
        baseline: (..., N) mean accuracies, made increasing by a running maximum.
        accuracy: (..., M).

    Returns:
        (..., M) sizes; NaN above the last and below the first baseline.
    """
    rising = baseline.cummax(-1).values + torch.arange(baseline.shape[-1]) * 1e-9
    log_n, sought = sizes.double().log().numpy(), accuracy.view(-1, accuracy.shape[-1])
    found = [
        np.interp(ours, known, log_n, left=np.nan, right=np.nan)
        for ours, known in zip(sought.numpy(), rising.view(-1, len(sizes)).numpy(), strict=True)
    ]
    return torch.tensor(np.array(found)).exp().view(accuracy.shape)


def extra_data(
    sizes: list[int],
    baseline: Tensor,
    ours_sizes: list[int],
    ours: Tensor,
    bootstrap: int,
    generator: torch.Generator,
) -> dict:
    """Per cent of further data that gives the baseline the accuracy of ``ours``, with bootstrap
    intervals over runs.

    Args:
        sizes: of the baseline, increasing.
        baseline: (N, R) accuracies.
        ours_sizes: some of ``sizes``.
        ours: (M, R) accuracies of the same runs.
        bootstrap: resamples of the R runs.
        generator: of the resamples.

    Returns:
        by size where a reading exists, and two averages over such sizes, "all sizes" and "tens"
        (the multiples of 10): ``percent`` and its 95 % ``interval``.
    """
    if baseline.shape != (len(sizes), ours.shape[1]) or len(ours) != len(ours_sizes):
        raise ValueError(
            f"baseline and ours must be (sizes, R), got {tuple(baseline.shape)} and "
            f"{tuple(ours.shape)}"
        )
    runs = ours.shape[1]
    picks = torch.randint(runs, (checks.count("bootstrap", bootstrap), runs), generator=generator)
    picks = torch.cat([torch.arange(runs)[None], picks])  # the first row is the data themselves
    means = [torch.stack([x[picks].mean(1) for x in part.double()], 1) for part in (baseline, ours)]
    found = equal_accuracy(torch.tensor(sizes), *means)
    percent = 100 * (found / torch.tensor(ours_sizes) - 1)
    usable = ~percent.isnan().any(0)
    answer = {str(n): _interval(percent[:, i]) for i, n in enumerate(ours_sizes) if usable[i]}
    tens = torch.tensor([n % 10 == 0 for n in ours_sizes])
    for name, chosen in (("all sizes", usable), ("tens", usable & tens)):
        if chosen.any():
            answer[name] = _interval(percent[:, chosen].mean(1))
    return answer


def _interval(values: Tensor) -> dict:
    interval = torch.quantile(values[1:], torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return {"percent": round(values[0].item(), 2), "interval": [round(x, 2) for x in interval]}
