"""Real side information: few full examples and a restricted model from elsewhere, by every method.

What the data are is in :mod:`imm_lib.experiments.side.sources`.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imm_lib import checks
from imm_lib.baselines import Interpolation, ReverseKD
from imm_lib.contexts import KernelContexts
from imm_lib.estimators import SampledIMM
from imm_lib.experiments import Experiment, options, reading
from imm_lib.experiments.side.sources import Problem, check_sizes, draw, source
from imm_lib.premise import lead, surprise
from imm_lib.results import mean_interval


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


def _at(log_q: Tensor, short: Tensor, extended: Tensor) -> Tensor:
    """A query whose answers are known for each point."""
    return log_q[extended]


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
        found = lead(partial(_at, log_q), contexts, problem.target, *pairs)
        share = len(pairs[1]) / len(fold)
        ahead, errors = ahead + share * found.ahead, errors + (share * found.error) ** 2
    return ahead / errors**0.5


SCORES = ("loss", "accuracy")

SHARES = [0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9]
"""Weights of interpolation."""


def _compare(unit: dict, config: dict, device: torch.device) -> dict:
    """Every method's test accuracy and loss, the target's alone, and how much the training labels
    surprise it.

    With "folds" also the target's lead on left-out pairs.
    """
    problem = draw(
        unit["data"], unit["n"], config["m"][unit["data"]], unit["seed"], unit.get("shift", 0.0)
    ).to(device)

    def fit(method: str, lam: float = 0.0, bandwidth: float = 1.0) -> Network:
        return train(
            problem, unit["kind"], method, lam, bandwidth, config["steps"], seed=unit["seed"]
        )

    plain = fit("baseline")
    found = {"baseline": evaluate(plain, problem)}
    for share in SHARES:
        found[f"interpolation, {share:g}"] = evaluate(plain, problem, share)
    for lam in config["lam"]:
        found[f"reverse-KD, λ = {lam:g}"] = evaluate(fit("reverse-KD", lam), problem)
    for lam, bandwidth in config["imm"]:
        found[f"IMM, λ = {lam:g}, bandwidth {bandwidth:g}"] = evaluate(
            fit("IMM", lam, bandwidth), problem
        )
    found["target"] = evaluate(plain, problem, 1.0)
    z = surprise(problem.target(problem.train.short), problem.train.label).z
    checked = {"surprise": z}
    if "folds" in config:
        checked["lead"] = left_out(
            problem, unit["kind"], config["folds"], config["steps"], seed=unit["seed"]
        )
    return {"methods": found, **checked}


def _units(config: dict, seed: int) -> list[dict]:
    return [
        {"data": data, "kind": kind, "n": n, **extra, "seed": seed + s}
        for data, kind, sizes in config["cases"]
        for n in sizes
        for extra in (
            [{"shift": shift} for shift in config["shift"]] if "shift" in config else [{}]
        )
        for s in range(config["splits"])
    ]


def _check(config: dict) -> None:
    options.rows("cases", config["cases"], 3)
    for data, kind, sizes in config["cases"]:
        options.one_of("cases", kind, ("logistic", "network", "convolutions"))
        if (kind == "convolutions") != (data == "digits"):
            raise ValueError(
                f"cases must have convolutions for digits and for nothing else, got {data}"
            )
        check_sizes(data, sizes, config["m"])
        if config.get("folds", 2) > min(sizes) // 2:
            raise ValueError(
                f"folds must be of two examples each, got {config['folds']} of {sizes}"
            )
    options.filled("lam", config["lam"])
    options.rows("imm", config["imm"], 2)
    options.filled("shift", config.get("shift", [0]))
    options.at_most("shift", config.get("shift"), 1)


def cases(result: dict) -> dict[tuple, list[dict]]:
    """The runs of each case, by its (data, kind, n) and, if there is one, shift; in the order of
    the splits.
    """
    found: dict[tuple, list[dict]] = {}
    for entry in result["units"]:
        key = tuple(value for name, value in entry["unit"].items() if name != "seed")
        found.setdefault(key, []).append(entry["numbers"])
    return found


def chosen(runs: list[dict], family: str, score: str = "loss") -> Tensor:
    """(splits,) test scores of a method at the settings that are best in loss on the other half of
    the splits.

    Args:
        runs: of one case.
        family: "baseline", "interpolation", "reverse-KD", "IMM" or "target"; or one setting by its
        whole name.
        score: "loss" in nats or "accuracy".

    Raises:
        ValueError: fewer than two splits, or an unknown family.
    """
    names = [name for name in runs[0]["methods"] if family in (name, name.split(",")[0])]
    if not names or len(runs) < 2:
        raise ValueError(
            f"family must be a method of at least two runs, got {family!r} and {len(runs)} runs"
        )
    read = {
        s: torch.tensor([[r["methods"][n][s] for n in names] for r in runs], dtype=torch.float64)
        for s in SCORES
    }
    found = torch.empty(len(runs), dtype=torch.float64)
    for half in range(2):
        own, other = slice(half, None, 2), slice(1 - half, None, 2)
        found[own] = read[score][own, read["loss"][other].mean(0).argmin()]
    return found


def change(runs: list[dict], family: str, leave_out: str | None = None) -> Tensor:
    """(splits,) test loss less the baseline's, in nats; settings are :func:`chosen`.

    Args:
        runs: of one case.
        family: of :func:`chosen`.
        leave_out: how the names of methods end that are not to be chosen from.
    """
    kept = [
        {
            "methods": {
                m: v
                for m, v in run["methods"].items()
                if leave_out is None or not m.endswith(leave_out)
            }
        }
        for run in runs
    ]
    return chosen(kept, family) - chosen(kept, "baseline")


def gain(runs: list[dict], family: str, leave_out: str | None = None) -> tuple[float, float]:
    """The mean over the splits of :func:`change`, and half of its 95 % interval."""
    return mean_interval(change(runs, family, leave_out))


class Shifted(NamedTuple):
    """Runs of one data set by the share of side labels that were moved: M shares, R splits."""

    share: Tensor  # (M, 1)
    z: Tensor  # (M, R) how much the training labels surprise the target
    # (M, R) of the target over the induced model on left-out training pairs, in standard errors
    lead: Tensor
    change: Tensor  # (M, R) of the test loss by IMM, in nats


def by_shift(result: dict) -> dict[str, Shifted]:
    """The runs of a result with shifts, by data set."""
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    for (data, _, _, share), runs in cases(result).items():
        z, ahead = (
            torch.tensor([run[k] for run in runs], dtype=torch.float64)
            for k in ("surprise", "lead")
        )
        found.setdefault(data, []).append((torch.tensor([share]), z, ahead, change(runs, "IMM")))
    return {
        data: Shifted(*map(torch.stack, zip(*rows, strict=True))) for data, rows in found.items()
    }


def harm(measure: Tensor, change: Tensor, edges: list[float]) -> Tensor:
    """What a measurement says of the change of the loss.

    Args:
        measure: (M, R).
        change: (M, R), in nats.
        edges: (B + 1,) of its bins, each without its lower end.

    Returns:
        (B, 4) how many runs are in each bin, the share that was harmed, their mean change, and the
        worst.
    """
    rows = [change[(measure > low) & (measure <= high)] for low, high in pairwise(edges)]
    return torch.stack(
        [
            torch.stack([torch.tensor(len(r)).to(r), (r > 0).to(r).mean(), r.mean(), r.max()])
            for r in rows
        ]
    )


def mean(runs: list[dict], method: str, score: str = "loss") -> float:
    """Mean test score of one method at one setting over the splits."""
    return sum(run["methods"][method][score] for run in runs) / len(runs)


_TABLE = partial(reading.listed, columns=SCORES, against="baseline", where="methods/{method}")
_M = {"breast cancer": 300, "wine": 60, "digits": 800}
_LAM = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
_FULL = {
    "m": _M,
    "splits": 20,
    "steps": 200,
    "lam": _LAM,
    "imm": [[lam, 1.0] for lam in (0.1, 0.3, 1.0, 3.0)],
}
_CI = {"m": _M, "splits": 2, "steps": 5, "lam": [1.0], "imm": [[1.0, 1.0]]}

EXPERIMENTS = [
    Experiment(
        name="side-tables",
        description="a clinic with few measurements helps one with all: breast cancer and wine, learning curves",
        scales={
            "full": {
                **_FULL,
                "cases": [
                    (data, kind, [20, 40, 80] if data == "wine" else [20, 40, 80, 160])
                    for data in ("breast cancer", "wine")
                    for kind in ("logistic", "network")
                ],
            },
            "ci": {**_CI, "cases": [("wine", "logistic", [20])]},
        },
        units=_units,
        run=_compare,
        table=_TABLE,
        check=_check,
    ),
    Experiment(
        name="side-digits",
        description="a model that sees a quarter of the pixels helps a convolutional network on the digits",
        scales={
            "full": {
                **{key: _FULL[key] for key in ("m", "splits")},
                "steps": 100,
                "lam": [0.01, 0.03, 0.1, 0.3, 1.0],
                "imm": [
                    [0.1, 0.03],
                    [0.3, 0.03],
                    [1.0, 0.03],
                    *([lam, b] for b in (0.1, 0.3) for lam in (0.3, 1.0, 3.0)),
                ],
                "cases": [("digits", "convolutions", [50, 100, 200, 500])],
            },
            "ci": {**_CI, "cases": [("digits", "convolutions", [50])]},
        },
        units=_units,
        run=_compare,
        table=_TABLE,
        check=_check,
    ),
    Experiment(
        name="side-shift",
        description="a restricted model from another population: when IMM hurts, and what says so before training",
        scales={
            "full": {
                **_FULL,
                "lam": [1.0],
                "imm": [[1.0, 1.0]],
                "cases": [("breast cancer", "logistic", [40]), ("wine", "logistic", [40])],
                "shift": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0],
                "folds": 5,
            },
            "ci": {**_CI, "cases": [("wine", "logistic", [20])], "shift": [0.0, 1.0], "folds": 5},
        },
        units=_units,
        run=_compare,
        table=_TABLE,
        check=_check,
    ),
]
