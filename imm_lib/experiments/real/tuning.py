"""λ without a search, on real tables: the rules of :mod:`imm_lib.experiments.finite.tuning`, for
a logistic regression and a clinic's data.
"""

import copy
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from imm_lib import checks
from imm_lib.contexts import KernelContexts
from imm_lib.estimators import ExactIMM, Query
from imm_lib.experiments import Experiment, options
from imm_lib.experiments.finite.tuning import FOLDS, GRID, LARGEST, schedule
from imm_lib.experiments.real.readings import cases
from imm_lib.experiments.real.sources import Part, check_sizes, draw
from imm_lib.experiments.training import minimise
from imm_lib.results import mean_interval
from imm_lib.worth import suggest_lambda

BANDWIDTH = 1.0
"""Of the kernel, in standard deviations per restricted feature."""

DECAY = 1.0
"""L2 penalty on the parameters, divided by the number of examples."""


class Clinic:
    """A logistic regression on one split's training examples, by exact IMM in float64.

    Args:
        data: a source of :func:`real.draw`.
        n: full examples.
        m: side examples.
        seed: of the split.

    Raises:
        TypeError, ValueError: as of :func:`draw`, or fewer full examples than folds.
    """

    def __init__(self, data: str, n: int, m: int, seed: int):
        if checks.count("n", n) < FOLDS:
            raise ValueError(
                f"n must be at least {FOLDS}, one example for each fold of the validation, got {n}"
            )
        problem = draw(data, n, m, seed)
        self.train, self.test, self.target = problem.train, problem.test, problem.target
        self.n, self.m, self.labels = n, m, problem.labels
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        self.folds = [order[fold::FOLDS] for fold in range(FOLDS)]

    def to(self, device: torch.device) -> "Clinic":
        """The same clinic on another device."""
        moved = copy.copy(self)
        moved.train, moved.test = self.train.to(device), self.test.to(device)
        moved.folds = [fold.to(device) for fold in self.folds]
        return moved

    def log_q(self, theta: Tensor, short: Tensor, rest: Tensor) -> Tensor:
        """(N, c), (N, f) -> (N, Y) log-probabilities."""
        inputs = torch.cat([short.new_ones(len(short), 1), short, rest], 1).double()
        return (inputs @ theta.view(-1, self.labels)).log_softmax(1)

    def fold(self, index: int) -> Part:
        """The training examples of one fold."""
        return Part(*(values[self.folds[index]] for values in self.train))

    def without(self, index: int | None) -> Part:
        """The training examples of all folds but one, or of all."""
        kept = torch.cat([fold for i, fold in enumerate(self.folds) if i != index])
        return Part(*(values[kept] for values in self.train))

    def query(self, theta: Tensor, part: Part) -> Query:
        """The model at a part's examples, as the estimators ask it: a neighbour is taken whole."""
        log_q = self.log_q(theta, part.short, part.rest)
        return lambda short, point: log_q[point]

    def objective(self, theta: Tensor, part: Part, lam: float) -> Tensor:
        """Cross-entropy + λ · IMM + penalty, in nats; the extended contexts are the part's own."""
        penalty = DECAY / (2 * len(part.label)) * theta.square().sum()
        loss = self.cross_entropy(theta, part) + penalty
        return loss + lam * self.risk(theta, part) if lam > 0 else loss

    def contexts(self, part: Part) -> KernelContexts:
        """Of IMM on a part."""
        return KernelContexts(part.short, BANDWIDTH * part.short.shape[1])

    def risk(self, theta: Tensor, part: Part) -> Tensor:
        """The exact IMM risk on a part, in nats."""
        return ExactIMM(self.target, self.contexts(part))(self.query(theta, part), part.short)

    def cross_entropy(self, theta: Tensor, part: Part) -> Tensor:
        """Mean loss on a part, in nats."""
        return F.nll_loss(self.log_q(theta, part.short, part.rest), part.label)

    def fit(self, lam: float, held_out: int | None = None) -> Tensor:
        """The parameters at λ, to convergence."""
        part = self.without(held_out)
        size = (1 + part.short.shape[1] + part.rest.shape[1]) * self.labels
        theta = torch.zeros(size, dtype=torch.float64, device=part.short.device)
        minimise(lambda: self.objective(theta, part, lam), [theta], 200, tolerance_change=1e-10)
        return theta.detach()


def plug_in(clinic: Clinic) -> float:
    """:func:`imm_lib.worth.suggest_lambda` at the fit with λ = 1."""
    theta, part = clinic.fit(1.0).requires_grad_(), clinic.train
    points = torch.arange(clinic.n, device=part.short.device)
    sample = clinic.contexts(part), part.short, points
    return suggest_lambda(clinic.query(theta, part), [theta], *sample, clinic.m, largest=LARGEST)


def cross_validated(clinic: Clinic) -> float:
    """The weight of GRID with the least loss on held-out folds."""

    def held_out(lam: float) -> float:
        return sum(
            clinic.cross_entropy(clinic.fit(lam, fold), clinic.fold(fold)).item()
            for fold in range(FOLDS)
        )

    return min(GRID, key=held_out)


def hypergradient(clinic: Clinic, lam: float) -> float:
    """Derivative by log λ of the loss on the first fold, of a fit on the others; by implicit
    differentiation.
    """
    part, theta = clinic.without(0), clinic.fit(lam, 0)
    curvature = torch.autograd.functional.hessian(lambda t: clinic.objective(t, part, lam), theta)
    theta.requires_grad_()
    (by_term,) = torch.autograd.grad(lam * clinic.risk(theta, part), theta)
    (outer,) = torch.autograd.grad(clinic.cross_entropy(theta, clinic.fold(0)), theta)
    return -(outer @ torch.linalg.solve(curvature, by_term)).item()


def validation_gradient(clinic: Clinic, steps: int = 30, rate: float = 0.3) -> float:
    """The λ to which Adam moves along the :func:`hypergradient`, from 1."""
    log_lam = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([log_lam], rate)
    for _ in range(steps):
        log_lam.grad = log_lam.new_tensor(hypergradient(clinic, log_lam.exp().item()))
        optimiser.step()
        log_lam.data.clamp_(max=math.log(LARGEST))
    return log_lam.exp().item()


RULES = {
    "none": lambda clinic: 0.0,
    "λ = 1": lambda clinic: 1.0,
    "paper's schedule": lambda clinic: schedule(clinic.n),
    "m / n": lambda clinic: min(clinic.m / clinic.n, LARGEST),
    "plug-in": plug_in,
    "cross-validation": cross_validated,
    "validation gradient": validation_gradient,
}


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    clinic = Clinic(unit["data"], unit["n"], config["m"][unit["data"]], unit["seed"]).to(device)

    def loss(lam: float) -> float:
        return clinic.cross_entropy(clinic.fit(lam), clinic.test).item()

    chosen = {name: rule(clinic) for name, rule in RULES.items()}
    rules = {name: {"lam": lam, "loss": loss(lam)} for name, lam in chosen.items()}
    return {"rules": rules, "by_lam": {str(lam): loss(lam) for lam in GRID}}


def _check(config: dict) -> None:
    options.rows("cases", config["cases"], 2)
    for data, n in config["cases"]:
        check_sizes(data, [n], config["m"])
        if n < FOLDS:
            raise ValueError(f"cases must have at least {FOLDS} full examples, got {n}")


def summary(result: dict) -> dict[tuple, dict[str, Tensor]]:
    """By case and rule: (splits,) test losses less those of the one λ of GRID that is best on
    average.
    """
    found = {}
    for case, runs in cases(result).items():
        by_lam = torch.tensor([list(run["by_lam"].values()) for run in runs])
        best = by_lam[:, by_lam.mean(0).argmin()]
        found[case] = {
            name: torch.tensor([run["rules"][name]["loss"] for run in runs]) - best
            for name in runs[0]["rules"]
        }
    return found


def _table(result: dict) -> list[list[str]]:
    rows = [["data", "n", "rule", "test loss over the best fixed λ, nats", "worst split"]]
    for (data, n), rules in summary(result).items():
        for name, over in rules.items():
            mean, half = mean_interval(over) if len(over) > 1 else (over.item(), math.nan)
            rows.append([data, str(n), name, f"{mean:+.4f} ± {half:.4f}", f"{over.max():+.4f}"])
    return rows


EXPERIMENTS = [
    Experiment(
        name="side-tuning",
        scales={
            "full": {
                "m": {"breast cancer": 300, "wine": 60},
                "cases": [
                    ["breast cancer", 20],
                    ["breast cancer", 40],
                    ["breast cancer", 80],
                    ["wine", 20],
                    ["wine", 40],
                ],
                "splits": 20,
            },
            "ci": {"m": {"wine": 60}, "cases": [["wine", 20]], "splits": 1},
        },
        units=lambda config, seed: [
            {"data": data, "n": n, "seed": seed + split}
            for data, n in config["cases"]
            for split in range(config["splits"])
        ],
        run=_run,
        table=_table,
        check=_check,
    )
]
