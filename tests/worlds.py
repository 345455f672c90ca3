"""Tiny worlds and models that the tests share, and brute-force answers on them."""

import math

import torch
from torch import Tensor, nn


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_log_q(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Log-probabilities over the last dimension, far enough from uniform to matter."""
    return (2 * torch.randn(*shape, generator=generator(seed), dtype=dtype)).log_softmax(-1)


def random_probabilities(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return random_log_q(*shape, seed=seed, dtype=dtype).exp()


def brute_induce(log_q: Tensor, w: Tensor) -> list[float]:
    """log sum_e w_e Q_e(y) of one (k, Y) table with Python's own arithmetic, label by label."""
    k, labels = log_q.shape
    sums = [
        math.fsum(w[e].item() * math.exp(log_q[e, y].item()) for e in range(k))
        for y in range(labels)
    ]
    return [math.log(s) for s in sums]


def brute_risk(target: Tensor, log_q: Tensor, w: Tensor) -> float:
    return -math.fsum(p.item() * q for p, q in zip(target, brute_induce(log_q, w), strict=True))


class PairModel(nn.Module):
    """Q(y|s,e) with one embedding of each context, a hidden layer and dropout: smooth, small, not
    linear.
    """

    def __init__(
        self, num_short: int, num_extended: int, labels: int, dropout: float = 0.0, seed: int = 0
    ):
        super().__init__()
        g = generator(seed)
        self.short = nn.Parameter(torch.randn(num_short, 5, generator=g, dtype=torch.float64))
        self.extended = nn.Parameter(torch.randn(num_extended, 5, generator=g, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(5, labels, generator=g, dtype=torch.float64))
        self.unused = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)

    def forward(self, short: Tensor, extended: Tensor) -> Tensor:
        hidden = self.dropout(torch.tanh(self.short[short] + self.extended[extended]))
        return (hidden @ self.head).log_softmax(-1)


def gradients(value: Tensor, module: nn.Module) -> list[Tensor]:
    """Gradients by every parameter; zeros where it is not used."""
    return list(
        torch.autograd.grad(
            value, list(module.parameters()), allow_unused=True, materialize_grads=True
        )
    )


def assert_same(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-12) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
