"""Networks on few full examples, by every method, and how far a target is ahead of one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imm_lib import checks
from imm_lib.baselines import Interpolation, ReverseKD
from imm_lib.contexts import KernelContexts
from imm_lib.estimators import SampledIMM
from imm_lib.experiments.real.sources import Problem, source
from imm_lib.premise import lead


class Network(nn.Module):
    """(N, c) short and (N, f) extended features -> (N, Y) log-probabilities.

    Args:
        kind: "logistic"; "network", of one hidden layer; or "convolutions", for images of 8 x 8.
        problem: what the sizes are taken from.
        hidden: units of the hidden layer.

    Raises:
        ValueError: an unknown kind.
    """

    body: nn.Module
    place: Tensor

    def __init__(self, kind: str, problem: Problem, hidden: int = 32):
        super().__init__()
        size = problem.train.short.shape[1] + problem.train.rest.shape[1]
        place = torch.arange(size)
        if kind == "logistic":
            self.body = nn.Linear(size, problem.labels)
        elif kind == "network":
            self.body = nn.Sequential(
                nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, problem.labels)
            )
        elif kind == "convolutions":
            seen = source(problem.name)[2]
            place = torch.tensor([*seen, *(i for i in range(size) if i not in set(seen))]).argsort()
            self.body = nn.Sequential(
                nn.Unflatten(1, (1, 8, 8)),
                nn.Conv2d(1, 16, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32 * 16, problem.labels),
            )
        else:
            raise ValueError(f"kind must be logistic, network or convolutions, got {kind!r}")
        self.register_buffer("place", place)

    def forward(self, short: Tensor, rest: Tensor) -> Tensor:
        """Log-probabilities of the labels."""
        return self.body(torch.cat([short, rest], 1)[:, self.place]).log_softmax(-1)


METHODS = ("baseline", "reverse-KD", "IMM")


def train(
    problem: Problem,
    kind: str,
    method: str = "baseline",
    lam: float = 1.0,
    bandwidth: float = 1.0,
    steps: int = 200,
    decay: float = 1.0,
    k: int = 20,
    seed: int = 0,
) -> Network:
    """Fit a network to the n full examples by Adam, all at each step, with λ times the method's
    term.

    Args:
        problem: from :func:`draw`.
        kind: of :class:`Network`.
        method: one of METHODS. IMM averages over the training examples that are near in the
            restricted features, by a Laplace kernel. A neighbour is taken whole: its rest beside
            another's restricted features may be an example that cannot be.
        lam: λ.
        bandwidth: of the kernel, in standard deviations per restricted feature.
        steps: of Adam, at a rate that falls to 0 along a cosine.
        decay: L2 penalty on the weights, divided by n.
        k: neighbours that stand for all, drawn anew at each step.
        seed: of the first weights and of the samples.

    Raises:
        TypeError, ValueError: an unknown kind or method, or numbers out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    lam, part = checks.number("lam", lam, 0), problem.train
    scale = checks.number("bandwidth", bandwidth, 0, open_low=True) * part.short.shape[1]
    reverse = ReverseKD(problem.target)
    generator = torch.Generator().manual_seed(seed)
    induced = SampledIMM(problem.target, KernelContexts(part.short, scale), k, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # drawn on the CPU, so that a seed means the same everywhere
        network = Network(kind, problem).to(part.label.device)
    weights = [p for p in network.parameters() if p.dim() > 1]
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, checks.count("steps", steps))
    for _ in range(steps):
        log_q = network(part.short, part.rest)
        loss = F.nll_loss(log_q, part.label) + decay / (2 * len(part.label)) * sum(
            w.square().sum() for w in weights
        )
        if method == "reverse-KD":
            loss = loss + lam * reverse(log_q, part.short)
        elif method == "IMM":
            loss = loss + lam * induced(lambda _, point, log_q=log_q: log_q[point], part.short)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def evaluate(network: Network, problem: Problem, weight: float = 0.0) -> dict[str, float]:
    """Test accuracy and mean loss in nats; ``weight`` is the target's share in the prediction."""
    test = problem.test
    log_q = network(test.short, test.rest)
    if weight > 0:
        log_q = Interpolation(problem.target, weight)(log_q, test.short)
    accuracy = (log_q.argmax(1) == test.label).double().mean().item()
    return {"accuracy": accuracy, "loss": F.nll_loss(log_q, test.label).item()}


def left_out(
    problem: Problem, kind: str, folds: int, steps: int = 200, bandwidth: float = 1.0, seed: int = 0
) -> float:
    """How far the target is ahead of the induced model of a plain training, in standard errors,
    without other data.

    Each fold of the training examples is left out of a training and lends its restricted pairs to
    :func:`imm_lib.premise.lead`.

    Raises:
        TypeError, ValueError: one fold, or so many that one has less than two pairs.
    """
    part, ahead, errors = problem.train, 0.0, 0.0
    if not 2 <= checks.count("folds", folds) <= len(part.label) // 2:
        raise ValueError(
            f"folds must be in [2, {len(part.label) // 2}], two pairs each, got {folds}"
        )
    fold = torch.arange(len(part.label), device=part.label.device) % folds
    for i in range(folds):
        others = type(part)(*(values[fold != i] for values in part))
        network = train(problem._replace(train=others), kind, steps=steps, seed=seed)
        with torch.no_grad():
            log_q = network(others.short, others.rest)
        contexts = KernelContexts(others.short, bandwidth * part.short.shape[1])
        pairs = part.short[fold == i], part.label[fold == i]

        def query(_: Tensor, point: Tensor, log_q: Tensor = log_q) -> Tensor:
            return log_q[point]

        found = lead(query, contexts, problem.target, *pairs)
        share = len(pairs[1]) / len(fold)
        ahead, errors = ahead + share * found.ahead, errors + (share * found.error) ** 2
    return ahead / errors**0.5
