"""What is kept of many Monte-Carlo runs."""

import torch
from torch import Tensor


def spread(values: Tensor) -> dict[str, float]:
    """Mean, its standard error, and the 10th and 90th percentiles of (R,) values."""
    values = values.double().cpu()
    low, high = torch.quantile(values, torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    error = (values.std() / len(values) ** 0.5).item()
    return {
        name: round(x, 4)
        for name, x in (("mean", values.mean().item()), ("se", error), ("p10", low), ("p90", high))
    }
