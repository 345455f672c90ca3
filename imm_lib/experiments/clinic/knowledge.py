"""Other kinds of knowledge, simulated beside theory: real-valued targets, contexts without labels,
and restricted models of coarser labels.
"""

import itertools

import torch
from torch import Tensor

from imm_lib.coarse import coarsen
from imm_lib.experiments import Experiment
from imm_lib.experiments.finite.descent import minimise
from imm_lib.experiments.finite.worlds import LogitWorld, Restriction, by_view, fit, share
from imm_lib.experiments.spread import mean_error
from imm_lib.experiments.table import Table
from imm_lib.means import linear_worth
from imm_lib.worth import Worth

THETA = torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64)
"""Of the twin: a bias, the restricted feature, and a hidden one that depends on it."""

LEVELS = torch.linspace(-1, 1, 4, dtype=torch.float64)
"""Values of the restricted feature."""

NOISE = 1.5
"""Standard deviation of y about its mean."""

TIED = 0.5
"""How much of the hidden feature's mean is the restricted one."""


def twin(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 3) inputs, (..., 3) their means given the restricted feature, and (...) its level."""
    level = torch.randint(len(LEVELS), shape, generator=generator)
    s, one = LEVELS[level], torch.ones(shape, dtype=torch.float64)
    hidden = TIED * s + torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.stack([one, s, hidden], -1), torch.stack([one, s, TIED * s], -1), level


def _means(unit: dict, config: dict, device: torch.device) -> dict:
    """Least squares with λ · ½ (m - induced mean)², or (m - f)² for reverse distillation."""
    generator = torch.Generator().manual_seed(unit["seed"])
    inputs, averaged, _ = twin((200_000,), generator)
    worth, gram = linear_worth(inputs, averaged, THETA, NOISE), inputs.T @ inputs / len(inputs)
    n, runs = unit["n"], config["runs"]
    x, averaged, level = twin((runs, n), generator)
    y = x @ THETA + NOISE * torch.randn(runs, n, generator=generator, dtype=torch.float64)
    m = averaged @ THETA
    same = (level.unsqueeze(2) == level.unsqueeze(1)).double()
    induced = same / same.sum(2, keepdim=True) @ x
    found = {}
    for lam in config["lam"]:
        row: dict = {"theory": worth.excess_risk(lam, n)}
        for name, rows in (("IMM", induced), ("reverse distillation", x)):
            left = x.mT @ x + lam * rows.mT @ rows
            right = x.mT @ y.unsqueeze(2) + lam * rows.mT @ m.unsqueeze(2)
            error = torch.linalg.solve(left, right).squeeze(2) - THETA
            row[name] = mean_error(torch.einsum("ri,ij,rj->r", error, gram, error) / (2 * NOISE**2))
        found[str(lam)] = row
    return {"by_lam": found}


def _unlabelled(unit: dict, config: dict, device: torch.device) -> dict:
    """IMM with π counted from the n points and u · n without labels."""
    world, generator = LogitWorld.draw(), torch.Generator().manual_seed(unit["seed"])
    view, n, runs = world.views["s"], config["n"], config["runs"]
    worth = Worth.of(*world.informations(view))
    counts, more = world.sample(n, runs, generator), round(unit["ratio"] * n)
    cells = n * counts.sum(-1)
    if more:
        cells = cells + more * world.sample(more, runs, generator).sum(-1)
    short = by_view(counts.sum(-1), view).unsqueeze(2)
    found = {}
    for lam in config["lam"]:
        pairs = short * world.target(view)
        term = Restriction(view, pairs, share(cells / cells.sum(1, keepdim=True), view), lam)
        theta, done = fit(world.features, counts, [term])
        theory = worth.excess_risk(lam, n, unlabelled=more)
        found[str(lam)] = {"theory": theory, **mean_error(world.excess(theta[done]))}
    return {"by_lam": found}


CLASSES, MERGED = 5, (0, 0, 0, 1, 2)
"""The full model's labels, and the restricted model's: three of five are one to it."""


def _coarse(unit: dict, config: dict, device: torch.device) -> dict:
    """A softmax model of five classes, beside a target that knows all of them or three merged."""
    world, generator = LogitWorld.draw(), torch.Generator().manual_seed(unit["seed"])
    features, pi, view = world.features, world.pi, world.views["s"]
    true = torch.randn(features.shape[1], CLASSES, generator=torch.Generator().manual_seed(1))
    log_p = (features @ true.double()).log_softmax(1)
    belief, weight = share(pi, view), by_view(pi, view)
    n, runs, labels = unit["n"], config["runs"], torch.tensor(MERGED)
    joint = (pi.unsqueeze(1) * log_p.exp()).flatten()
    drawn = torch.multinomial(joint, runs * n, True, generator=generator).view(runs, n)
    counts = torch.zeros(runs, len(joint), dtype=torch.float64)
    counts = counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64)) / n
    counts = counts.view(runs, len(pi), CLASSES)
    fine = by_view(belief * log_p.exp().T, view).T  # (G, Y)
    # every label's own class, or the merged ones
    kinds = {"five classes": torch.arange(CLASSES), "three merged": labels}

    def trained(lam: float, mapping: Tensor) -> dict[str, float]:
        target = coarsen(fine.log(), mapping).exp()

        def loss(theta: Tensor) -> Tensor:
            log_q = (features @ theta.view(runs, -1, CLASSES)).log_softmax(-1)
            induced = by_view(belief * log_q.mT.exp(), view).mT
            risk = -(target * coarsen(induced.clamp(max=1).log(), mapping)).sum(-1)
            penalty = config["decay"] / n * theta.square().sum(1)
            return -(counts * log_q).sum((1, 2)) + lam * (weight * risk).sum(1) + penalty

        theta = minimise(loss, torch.zeros(runs, features.shape[1] * CLASSES).double(), steps=150)
        log_q = (features @ theta.view(runs, -1, CLASSES)).log_softmax(-1)
        kl = (pi.unsqueeze(1) * log_p.exp() * (log_p - log_q)).sum((1, 2))
        return mean_error(kl)

    found = {"plain": trained(0.0, labels)}
    for lam, (name, mapping) in itertools.product(config["lam"], kinds.items()):
        found[f"{name}, λ = {lam:g}"] = trained(lam, mapping)
    return {"methods": found}


_LAM = [0.0, 0.3, 1.0, 3.0, 10.0]

EXPERIMENTS = [
    Experiment(
        name="knowledge-means",
        scales={
            "full": {"n": [25, 50, 100, 200, 400], "lam": _LAM, "runs": 500},
            "ci": {"n": [50], "lam": [0.0, 1.0], "runs": 50},
        },
        units=lambda config, seed: [{"seed": seed, "n": n} for n in config["n"]],
        run=_means,
        table=Table(
            "by_lam/{lam}",
            {
                "n": "{n}",
                "λ": "{lam}",
                "theory": "{theory:.5f}",
                **{
                    name: f"{{{name}/mean:.5f}} ± {{{name}/se:.5f}}"
                    for name in ("IMM", "reverse distillation")
                },
            },
        ),
        devices=("cpu",),
    ),
    Experiment(
        name="knowledge-unlabelled",
        scales={
            "full": {
                "n": 100,
                "ratio": [0.0, 0.5, 1.0, 2.0, 5.0, 10.0],
                "lam": [1.0, 3.0, 10.0],
                "runs": 2000,
            },
            "ci": {"n": 100, "ratio": [0.0, 2.0], "lam": [1.0], "runs": 50},
        },
        units=lambda config, seed: [{"seed": seed, "ratio": r} for r in config["ratio"]],
        run=_unlabelled,
        table=Table(
            "by_lam/{lam}",
            {
                "ratio": "{ratio}",
                "λ": "{lam}",
                "theory": "{theory:.5f}",
                "simulated": "{mean:.5f} ± {se:.5f}",
            },
        ),
        devices=("cpu",),
    ),
    Experiment(
        name="knowledge-coarse",
        scales={
            "full": {
                "n": [50, 100, 200, 400],
                "lam": [1.0, 3.0],
                "runs": 60,
                "decay": 0.1,
            },
            "ci": {"n": [50], "lam": [1.0], "runs": 4, "decay": 0.1},
        },
        units=lambda config, seed: [{"seed": seed, "n": n} for n in config["n"]],
        run=_coarse,
        table=Table(
            "methods/{method}",
            {
                "n": "{n}",
                "method": "{method}",
                "excess risk, nats": "{mean:.4f} ± {se:.4f}",
            },
        ),
        devices=("cpu",),
    ),
]
