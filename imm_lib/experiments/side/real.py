"""Real side information: few full examples, and a restricted model fitted where only part was measured.

A clinic with all measurements has n patients; another one has m, of whom it knows two measurements and the outcome.
The restricted model is fitted there, and handed to the clinic with all. The digits tell the same story: a quarter of
the pixels of many images, all pixels of few.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imm_lib import checks
from imm_lib.baselines import Interpolation, ReverseKD
from imm_lib.contexts import KernelContexts
from imm_lib.estimators import SampledIMM
from imm_lib.experiments import Experiment
from imm_lib.worth import surprise


class Part(NamedTuple):
    """N labelled examples; features are standardised."""

    short: Tensor  # (N, c) what the restricted model sees
    rest: Tensor  # (N, f) the rest, the extended context
    label: Tensor  # (N,)


class Problem(NamedTuple):
    """One split of a data set."""

    name: str
    train: Part
    test: Part
    target: Callable[[Tensor], Tensor]  # (B, c) short contexts -> (B, Y) probabilities
    labels: int


@functools.cache
def source(name: str) -> tuple[Tensor, Tensor, list[int]]:
    """(N, F) features, (N,) labels, and which features the restricted model sees, of a data set of scikit-learn's.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    from sklearn import datasets

    known = {
        # mean radius and mean texture: what a first look gives
        "breast cancer": (datasets.load_breast_cancer, [0, 1]),
        # alcohol and the intensity of the colour
        "wine": (datasets.load_wine, [0, 9]),
        # every second pixel of every second row
        "digits": (datasets.load_digits, [8 * row + column for row in range(0, 8, 2) for column in range(0, 8, 2)]),
    }
    if name not in known:
        raise ValueError(f"source must be one of {', '.join(known)}, got {name!r}")
    load, seen = known[name]
    data = load()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target), seen


def _scaler(values: Tensor) -> Callable[[Tensor], Tensor]:
    mean, deviation = values.mean(0), values.std(0).clamp(min=1e-3)
    return lambda x: ((x - mean) / deviation).clamp(-5, 5)


def draw(name: str, n: int, m: int, seed: int, shift: float = 0.0) -> Problem:
    """Disjoint training, side and test data of one split; at least a tenth of the examples is for testing.

    The restricted model is scikit-learn's logistic regression on the m side examples.

    Args:
        name: "breast cancer", "wine" or "digits".
        n: full training examples.
        m: side examples, of which the restricted features and the label are known.
        seed: of the split.
        shift: share of the side labels that are moved on to the next class: a population of another kind.

    Raises:
        TypeError, ValueError: an unknown source, numbers out of range, more examples than there are, or side
            examples of one class only.
    """
    from sklearn.linear_model import LogisticRegression

    features, label, seen = source(name)
    total = len(label)
    if checks.count("n", n) + checks.count("m", m) > 0.9 * total:
        raise ValueError(f"n + m must be at most {int(0.9 * total)} for {name}, got {n} + {m}")
    shift = checks.number("shift", shift, 0, 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(total, generator=generator)
    train, side, test = order[:n], order[n : n + m], order[n + m :]
    rest = [i for i in range(features.shape[1]) if i not in set(seen)]
    short_of, rest_of = _scaler(features[order[: n + m]][:, seen]), _scaler(features[train][:, rest])

    def part(index: Tensor) -> Part:
        return Part(short_of(features[index][:, seen]), rest_of(features[index][:, rest]), label[index])

    labels, shown = int(label.max()) + 1, label[side].clone()
    moved = torch.rand(m, generator=generator) < shift
    shown[moved] = (shown[moved] + 1) % labels
    if len(shown.unique()) < 2:
        raise ValueError(f"m must be enough for two classes, got {m} side examples of one")
    short = short_of(features[side][:, seen])
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(short.numpy(), shown.numpy())
    # a class that the side sample lacks has probability 0: smoothed by one example's weight
    prior = torch.full((labels,), 1 / labels)

    def target(short: Tensor) -> Tensor:
        rows = torch.zeros(len(short), labels)
        rows[:, torch.as_tensor(fitted.classes_)] = torch.as_tensor(fitted.predict_proba(short.numpy())).float()
        return (m * rows + prior) / (m + 1)

    return Problem(name, part(train), part(test), target, labels)


class Network(nn.Module):
    """(N, c) short and (N, f) extended features -> (N, Y) log-probabilities.

    Args:
        kind: "logistic"; "network", of one hidden layer; or "convolutions", for images of 8 x 8.
        problem: what the sizes are taken from.
        hidden: units of the hidden layer.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(self, kind: str, problem: Problem, hidden: int = 32):
        super().__init__()
        size = problem.train.short.shape[1] + problem.train.rest.shape[1]
        place = torch.arange(size)
        if kind == "logistic":
            self.body = nn.Linear(size, problem.labels)
        elif kind == "network":
            self.body = nn.Sequential(nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, problem.labels))
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
    """Fit a network to the n full examples by Adam, all at each step, with λ times the method's term.

    Args:
        problem: from :func:`draw`.
        kind: of :class:`Network`.
        method: one of METHODS. IMM averages over the training examples that are near in the restricted features,
            by a Laplace kernel. A neighbour is taken whole: its rest beside another's restricted features may be an
            example that cannot be.
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
        torch.manual_seed(seed)
        network = Network(kind, problem)
    weights = [p for p in network.parameters() if p.dim() > 1]
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, checks.count("steps", steps))
    for _ in range(steps):
        log_q = network(part.short, part.rest)
        loss = F.nll_loss(log_q, part.label) + decay / (2 * len(part.label)) * sum(w.square().sum() for w in weights)
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


SCORES = ("loss", "accuracy")

SHARES = [0.1, 0.3, 0.5]
"""Weights of interpolation."""


def _compare(unit: dict, config: dict, device: torch.device) -> dict:
    """Every method's test accuracy and loss, the target's alone, and how much the training labels surprise it."""
    problem = draw(unit["data"], unit["n"], config["m"][unit["data"]], unit["seed"], unit.get("shift", 0.0))

    def fit(method: str, lam: float = 0.0, bandwidth: float = 1.0) -> Network:
        return train(problem, unit["kind"], method, lam, bandwidth, config["steps"], seed=unit["seed"])

    plain = fit("baseline")
    found = {"baseline": evaluate(plain, problem)}
    for share in SHARES:
        found[f"interpolation, {share:g}"] = evaluate(plain, problem, share)
    for lam in config["lam"]:
        found[f"reverse-KD, λ = {lam:g}"] = evaluate(fit("reverse-KD", lam), problem)
        for bandwidth in config["bandwidth"]:
            name = f"IMM, λ = {lam:g}, bandwidth {bandwidth:g}"
            found[name] = evaluate(fit("IMM", lam, bandwidth), problem)
    found["target"] = evaluate(plain, problem, 1.0)
    z = surprise(problem.target(problem.train.short), problem.train.label).z
    return {"methods": found, "surprise": z}


def _units(config: dict, seed: int) -> list[dict]:
    return [
        {"data": data, "kind": kind, "n": n, **extra, "seed": seed + s}
        for data, kind, sizes in config["cases"]
        for n in sizes
        for extra in ([{"shift": shift} for shift in config["shift"]] if "shift" in config else [{}])
        for s in range(config["splits"])
    ]


def cases(result: dict) -> dict[tuple, list[dict]]:
    """The runs of each case, by its (data, kind, n) and, if there is one, shift; in the order of the splits."""
    found = {}
    for entry in result["units"]:
        key = tuple(value for name, value in entry["unit"].items() if name != "seed")
        found.setdefault(key, []).append(entry["numbers"])
    return found


def chosen(runs: list[dict], family: str, score: str = "loss") -> Tensor:
    """(splits,) test scores of a method at the settings that are best in loss on the other half of the splits.

    Args:
        runs: of one case.
        family: "baseline", "interpolation", "reverse-KD", "IMM" or "target".
        score: "loss" in nats or "accuracy".

    Raises:
        ValueError: fewer than two splits, or an unknown family.
    """
    names = [name for name in runs[0]["methods"] if name.split(",")[0] == family]
    if not names or len(runs) < 2:
        raise ValueError(f"family must be a method of at least two runs, got {family!r} and {len(runs)} runs")
    read = {s: torch.tensor([[r["methods"][n][s] for n in names] for r in runs], dtype=torch.float64) for s in SCORES}
    found = torch.empty(len(runs), dtype=torch.float64)
    for half in range(2):
        own, other = slice(half, None, 2), slice(1 - half, None, 2)
        found[own] = read[score][own, read["loss"][other].mean(0).argmin()]
    return found


def _table(result: dict) -> list[list[str]]:
    rows = [["case", "method", "loss", "accuracy", "less baseline: loss"]]
    for key, runs in cases(result).items():
        for method in runs[0]["methods"]:
            loss, accuracy = (sum(r["methods"][method][name] for r in runs) / len(runs) for name in SCORES)
            change = sum(r["methods"][method]["loss"] - r["methods"]["baseline"]["loss"] for r in runs) / len(runs)
            label = ", ".join(str(value) for value in key)
            rows.append([label, method, f"{loss:.4f}", f"{accuracy:.4f}", f"{change:+.4f}"])
    return rows


_M = {"breast cancer": 300, "wine": 60, "digits": 800}
_FULL = {"m": _M, "splits": 20, "steps": 200, "lam": [0.3, 1.0, 3.0], "bandwidth": [1.0]}
_CI = {"m": _M, "splits": 2, "steps": 5, "lam": [1.0], "bandwidth": [1.0]}

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
        table=_table,
    ),
    Experiment(
        name="side-digits",
        description="a model that sees a quarter of the pixels helps a convolutional network on the digits",
        scales={
            "full": {
                **_FULL,
                "steps": 100,
                "lam": [0.1, 0.3, 1.0],
                "bandwidth": [0.03, 0.3],
                "cases": [("digits", "convolutions", [50, 100, 200, 500])],
            },
            "ci": {**_CI, "cases": [("digits", "convolutions", [50])]},
        },
        units=_units,
        run=_compare,
        table=_table,
    ),
    Experiment(
        name="side-shift",
        description="a restricted model from another population: when IMM hurts, and what says so before training",
        scales={
            "full": {
                **_FULL,
                "lam": [1.0],
                "cases": [("breast cancer", "logistic", [40]), ("wine", "logistic", [40])],
                "shift": [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0],
            },
            "ci": {**_CI, "cases": [("wine", "logistic", [20])], "shift": [0.0, 1.0]},
        },
        units=_units,
        run=_compare,
        table=_table,
    ),
]
