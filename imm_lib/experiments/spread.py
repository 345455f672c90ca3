"""What is kept of many Monte-Carlo runs."""

import torch
from torch import Tensor


def mean_error(values: Tensor) -> dict[str, float]:
    """Mean and its standard error of (R,) values."""
    return {"mean": values.mean().item(), "se": (values.std() / len(values) ** 0.5).item()}


def spread(values: Tensor) -> dict[str, float]:
    """Mean, its standard error, and the 10th and 90th percentiles of (R,) values."""
    values = values.double().cpu()
    low, high = torch.quantile(values, torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    found = {**mean_error(values), "p10": low, "p90": high}
    return {name: round(value, 4) for name, value in found.items()}
