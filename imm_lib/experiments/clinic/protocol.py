"""The benchmark's protocol: what is compared, what each method may choose from, and by what.

Every method has one knob with six values, 0 among them, where it does nothing. Plain training
chooses its weight decay. Every other method takes that decay, chooses its own knob, and then the
decay once more beside it; a mixture trains nothing and chooses its share alone. All choose by the
same five folds of the training data. A method of two parts takes the first part's choices and goes
on from there. Scores are losses: the lower, the better.
"""

import torch
from torch import Tensor

DECAYS = (0.0, 0.1, 0.5, 2.0, 8.0, 30.0)
"""Penalty decay / (2 n) · |weights|² on a mean loss."""

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
"""Of the target: in a mixture, or as λ / (1 + λ) in a loss."""

OFFSETS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""What the target's log-probabilities are multiplied with before they are added to the logits."""

WEIGHTS = tuple(round(rho / (1 - rho), 6) for rho in SHARES)
"""λ of reverse distillation and of IMM."""

FOLDS = 5

METHODS = (
    "plain",
    "interpolation",
    "offset",
    "reverse distillation",
    "IMM",
    "IMM + offset",
    "IMM + interpolation",
    "IMM, suggested λ",
    "IMM, λ = 1",
)
"""In the order of tables. The last two choose nothing by validation."""


def folds(n: int, generator: torch.Generator) -> Tensor:
    """(FOLDS + 1, n) which of n cases each training uses: all but one fold, and all of them
    last.
    """
    fold = torch.arange(n)[torch.randperm(n, generator=generator)] % FOLDS
    left_out = fold.unsqueeze(0) == torch.arange(FOLDS).unsqueeze(1)
    return torch.cat([~left_out, torch.ones(1, n, dtype=torch.bool)])


SEARCH = (FOLDS + 1) * len(DECAYS)
"""Trainings of one search: every value of a knob on every part."""


def cost(method: str) -> int:
    """Trainings that a method needs for all of its choices, those of plain training included."""
    searches = {
        "plain": 1,
        "interpolation": 1,
        "offset": 3,
        "reverse distillation": 3,
        "IMM": 3,
        "IMM + offset": 5,
        "IMM + interpolation": 3,
    }
    if method in searches:
        return searches[method] * SEARCH
    return SEARCH + (2 if method == "IMM, suggested λ" else 1)
