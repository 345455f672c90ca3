"""What the stored benchmark says: paired differences, wins and losses, harm, regret, and ranks."""

import torch
from torch import Tensor


def tasks(*stored: dict) -> dict[str, dict[str, Tensor]]:
    """By task and method: (R,) losses, the repetitions in the order of their units.

    Args:
        stored: results of map-tables, map-cube, map-grid or map-text.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for result in stored:
        for entry in result["units"]:
            task, numbers = entry["unit"]["task"], entry["numbers"]
            if "budgets" in numbers:
                cells = {f"{task}, {b} trials": m for b, m in numbers["budgets"].items()}
            else:
                cells = {task: numbers["methods"]}
            for name, by_method in cells.items():
                for method, values in by_method.items():
                    found.setdefault(name, {}).setdefault(method, []).extend(values["loss"])
    return {
        task: {
            method: torch.tensor(values, dtype=torch.float64)
            for method, values in by_method.items()
        }
        for task, by_method in found.items()
    }
