"""λ by :mod:`imm_lib.worth` for the benchmark's models: nothing but their last layer is looked
at.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from imm_lib import worth
from imm_lib.contexts import KernelContexts
from imm_lib.experiments.clinic.training import Cases, Model, Weights

LOOKED_AT = 600
"""Short contexts times labels that are differentiated, at most; so many cases stand for all."""

LARGEST = 30.0
"""Upper limit of λ."""


def last_layer(
    model: Model, cases: Cases, weights: Weights, run: int, size: int
) -> tuple[list[Tensor], Callable[[Tensor, Tensor], Tensor], KernelContexts]:
    """The last layer's parameters of one run in float64, the model as estimators ask it, and its
    contexts: the first ``size`` training cases.
    """
    own = [w[run].double() for w in weights]
    last = [w.clone().requires_grad_() for w in own[-2:]]
    short, rest = cases.short[run, :size].double(), cases.rest[run, :size].double()

    def answer(first: Tensor, other: Tensor) -> Tensor:
        hidden = torch.cat([first, other], -1)
        if len(own) == 4:
            hidden = torch.tanh(hidden @ own[0] + own[1])
        return (hidden @ last[0] + last[1]).log_softmax(-1)

    def query(asked: Tensor, extended: Tensor) -> Tensor:
        if model.mixed:
            return answer(asked.unsqueeze(-1) if asked.dim() == 1 else asked, rest[extended])
        return answer(short, rest)[extended]

    return last, query, KernelContexts(short, model.bandwidth * short.shape[-1])


def suggester(model: Model, cases: Cases, m: float) -> Callable[[Weights], Tensor]:
    """Weights of a training at λ = 1 -> (R,) λ, for a target from m restricted samples."""
    n = cases.label.shape[1]
    size = min(n, LOOKED_AT // (5 * model.outputs))

    def suggest(weights: Weights) -> Tensor:
        found = []
        for run in range(len(cases.label)):
            last, query, contexts = last_layer(model, cases, weights, run, size)
            short = cases.short[run, :size].double()
            known = worth.measure(
                query, last, contexts, short, torch.arange(size, device=short.device), damping=1e-3
            )
            found.append(min(known.optimal_lambda(n, m), LARGEST))
        return torch.tensor(found)

    return suggest
