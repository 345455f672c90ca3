"""What the experiments' training loops share: checkpoints that a kill cannot spoil, and passes
without dropout.
"""

import contextlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from imm_lib import results


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of the block, except for LSTMs, which drop nothing themselves.

    CUDA's fused LSTM has no backward pass in evaluation mode, and the IMM term needs gradients
    without dropout.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = module.training and isinstance(module, nn.LSTM)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def save(checkpoint: Path, state: dict) -> None:
    """Write a run's state, whole or not at all."""
    file = io.BytesIO()
    torch.save(state, file)
    results.write_bytes(checkpoint, file.getvalue())


def load(checkpoint: Path) -> dict:
    """What :func:`save` wrote, on the CPU; raises ValueError if torch cannot read it."""
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint must be a file that train has written, got {checkpoint.name}: {error}"
        ) from None
