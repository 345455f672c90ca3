"""What the experiments' training loops share: passes without dropout."""

import contextlib
from collections.abc import Iterator

from torch import nn


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
