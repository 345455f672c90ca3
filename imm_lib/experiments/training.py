"""What the experiments' trainings share: passes without dropout, and L-BFGS to convergence."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


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


def minimise(
    loss: Callable[[], Tensor],
    parameters: list[Tensor],
    steps: int,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
) -> None:
    """Move leaf tensors to where ``loss()`` of them is least, by L-BFGS with Wolfe's conditions.

    Args:
        loss: () -> a scalar.
        parameters: changed in place; without gradients afterwards.
        steps: the most iterations.
        tolerance_grad: the largest slope at which it has arrived.
        tolerance_change: the least step, and the least change of the loss, that goes on.
    """
    optimiser = torch.optim.LBFGS(
        [parameter.requires_grad_() for parameter in parameters],
        max_iter=steps,
        tolerance_grad=tolerance_grad,
        tolerance_change=tolerance_change,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    for parameter in parameters:
        parameter.requires_grad_(False)
