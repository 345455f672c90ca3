"""IMM on a small real data set (chapter 4): an old system reads one sensor of many cases, a new
one all of few.

Every unit is one random partition of the breast-cancer data that scikit-learn ships: ``old`` cases,
of which only the sensor and the label are used, to fit the restricted model; n ``new`` cases with
all sensors, to train on; cases to choose settings with; cases to test on. All methods of a unit see
the same partition, so that they are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss

import imm_lib as imm
from imm_lib.experiments import Experiment, options, reading

METHODS = {
    "baseline": imm.plotting.METHOD_STYLE["baseline"],
    "interpolation": imm.plotting.METHOD_STYLE["interpolation"],
    "reverse-KD": imm.plotting.METHOD_STYLE["reverse-KD"],
    "offset": imm.plotting.Style("#661100", "p", ":"),
    "IMM": imm.plotting.METHOD_STYLE["IMM exact"],
}
"""The methods of the chapter's pictures, by their names in results, and how they look."""

CLIP = 3.0
"""Standardised values are clipped there: few cases estimate the scale of a heavy-tailed sensor
badly.
"""

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """One partition. Column ``sensor`` of ``x`` is ``s``; both are in standard deviations of the
    new cases.
    """

    x: Tensor  # (cases, sensors) float64
    y: Tensor  # (cases,)
    s: Tensor  # (cases,)
    sensor: int
    old: Tensor
    new: Tensor
    valid: Tensor
    test: Tensor
    target: Callable[[Tensor], Tensor]

    def to(self, device: torch.device) -> Task:
        """The same partition on another device."""
        tensors: dict[str, Any]  # of fields that mypy cannot tell apart here
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


def task(sensor: str, n: int, seed: int, old: int, valid: int, test: int) -> Task:
    """Partition and standardise the data, and fit the restricted model, a logistic regression on
    one sensor.

    All sensors are standardised by the n new cases, the only ones that have them all.

    Raises:
        ValueError: the data set has no such sensor, or too few cases.
    """
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression

    bunch = load_breast_cancer()
    names = [str(name) for name in bunch.feature_names]
    if sensor not in names:
        raise ValueError(f"sensor must be one of {', '.join(names)}, got {sensor!r}")
    x, y = torch.tensor(bunch.data), torch.tensor(bunch.target)
    if old + n + valid + test > len(y):
        raise ValueError(
            f"old + n + valid + test must be at most {len(y)}, got {old + n + valid + test}"
        )
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    parts = (
        order[:old],
        order[len(y) - n :],
        order[old : old + valid],
        order[old + valid : old + valid + test],
    )
    column = names.index(sensor)
    x = ((x - x[parts[1]].mean(0)) / x[parts[1]].std(0)).clamp(-CLIP, CLIP)
    s = x[:, column].contiguous()
    fitted = LogisticRegression().fit(s[parts[0], None], y[parts[0]])
    slope, intercept = fitted.coef_.item(), fitted.intercept_.item()

    def target(short: Tensor) -> Tensor:
        one = torch.sigmoid(slope * short + intercept)
        return torch.stack([1 - one, one], dim=1)

    return Task(x, y, s, column, *parts, target)


def fit(
    x: Tensor,
    y: Tensor,
    decay: float,
    extra: Callable[[Model], Tensor] | None = None,
    offset: Tensor | None = None,
):
    """Logistic regression by L-BFGS from zero: mean cross-entropy + decay / 2 · |W|² +
    ``extra(model)``, in nats.

    Args:
        x: (N, sensors) inputs.
        y: (N,) labels, 0 or 1.
        decay: weight decay.
        extra: maps the model to a further loss.
        offset: (N, 2) fixed logits to add while training; whoever predicts adds theirs.

    Returns:
        the model, (N, sensors) -> (N, 2) log-probabilities, and the bare logits, (N, sensors) ->
        (N, 2).
    """
    weight, bias = x.new_zeros(x.shape[1], 2), x.new_zeros(2)
    optimiser = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()],
        max_iter=100,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def logits(inputs: Tensor) -> Tensor:
        return inputs @ weight + bias

    def model(inputs: Tensor) -> Tensor:
        return logits(inputs).log_softmax(-1)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (
            cross_entropy(logits(x) if offset is None else logits(x) + offset, y)
            + decay / 2 * weight.square().sum()
        )
        if extra is not None:
            loss = loss + extra(model)
        loss.backward()
        return loss

    optimiser.step(closure)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    return model, logits


def imm_penalties(t: Task, rows: Tensor, config: dict) -> dict[str, Callable[[Model], Tensor]]:
    """The IMM risk of a model on the cases ``rows``: with the chapter's contexts, with others, with
    an empty target.
    """
    x, s = t.x[rows], t.s[rows]
    prior = torch.bincount(t.y[t.old], minlength=2).double() / len(t.old)
    shares = torch.linspace(0, 1, config["groups"] + 1, dtype=torch.float64)[1:-1]
    edges = torch.quantile(t.s[t.old], shares.to(s.device))
    group = torch.bucketize(t.s, edges)
    counts = s.new_zeros(config["groups"], 2).index_put_(
        (group[t.old], t.y[t.old]), s.new_ones(len(t.old)), accumulate=True
    )
    table = (counts + 0.5) / (counts + 0.5).sum(1, keepdim=True)

    def kernel(target, bandwidth):
        return imm.ExactIMM(target, imm.KernelContexts(s, bandwidth)), s

    arms = {
        "IMM": kernel(t.target, config["bandwidth"]),
        **{f"IMM, bandwidth {b:g}": kernel(t.target, b) for b in config["other_bandwidths"]},
        "IMM, groups": (
            imm.ExactIMM(table, imm.GroupedContexts(group[rows], config["groups"])),
            group[rows],
        ),
        "IMM, prior": kernel(lambda short: prior.expand(len(short), 2), config["bandwidth"]),
    }

    def penalty(risk, short):
        def of_model(model: Model) -> Tensor:
            def query(asked: Tensor, extended: Tensor) -> Tensor:
                mixed = x[extended]
                if (
                    asked.is_floating_point()
                ):  # a group's contexts keep their own values of the sensor
                    mixed[:, t.sensor] = asked
                return model(mixed)

            return risk(query, short)

        return of_model

    return {name: penalty(*arm) for name, arm in arms.items()}


def candidates(
    t: Task, rows: Tensor, decay: float, config: dict, methods: list[str]
) -> dict[str, dict[str, Model]]:
    """Every method at every setting, trained on ``rows``: method -> setting -> case indices ->
    log-probabilities.
    """
    x, y, s = t.x[rows], t.y[rows], t.s[rows]
    baseline, _ = fit(x, y, decay)

    def alone(model: Model, cases: Tensor) -> Tensor:
        return model(t.x[cases])

    def mixed(mix: imm.Interpolation, cases: Tensor) -> Tensor:
        return mix(baseline(t.x[cases]), t.s[cases])

    def shifted(logits: Model, cases: Tensor) -> Tensor:
        return (logits(t.x[cases]) + t.target(t.s[cases]).log()).log_softmax(-1)

    def weighted(lam: float, extra: Callable[[Model], Tensor], model: Model) -> Tensor:
        return lam * extra(model)

    plain: dict[str, Model] = {"0": partial(alone, baseline)}
    kd, penalties = imm.ReverseKD(t.target), imm_penalties(t, rows, config)
    extras = {"reverse-KD": lambda model: kd(model(x), s), **penalties}
    found: dict[str, dict[str, Model]] = {"baseline": plain}
    for name in methods:
        if name == "interpolation":
            mixes = {f"{w:g}": imm.Interpolation(t.target, w) for w in config["weights"]}
            found[name] = plain | {key: partial(mixed, mix) for key, mix in mixes.items()}
        elif name == "offset":
            found[name] = {}
            for other in config["decays"]:
                _, logits = fit(x, y, other, offset=t.target(s).log())
                found[name][f"{other:g}"] = partial(shifted, logits)
        else:
            found[name] = dict(plain)
            for lam in config["lambdas"]:
                model, _ = fit(x, y, decay, partial(weighted, lam, extras[name]))
                found[name][f"{lam:g}"] = partial(alone, model)
    return found


def scores(log_q: Tensor, y: Tensor) -> dict[str, float]:
    """Mean log-loss in nats and accuracy of (N, 2) log-probabilities."""
    return {
        "loss": nll_loss(log_q, y).item(),
        "accuracy": (log_q.argmax(-1) == y).double().mean().item(),
    }


def _losses(
    found: dict[str, dict[str, Model]], cases: Tensor, y: Tensor
) -> dict[str, dict[str, float]]:
    return {
        m: {k: scores(f(cases), y[cases])["loss"] for k, f in fs.items()} for m, fs in found.items()
    }


def _best_decay(t: Task, splits: list[tuple[Tensor, Tensor]], decays: list[float]) -> float:
    def loss(decay: float) -> float:
        fits = [(fit(t.x[rows], t.y[rows], decay)[0], held) for rows, held in splits]
        return sum(scores(model(t.x[held]), t.y[held])["loss"] for model, held in fits)

    return min(decays, key=loss)


def _choose(t: Task, splits: list[tuple[Tensor, Tensor]], config: dict, methods: list[str]) -> dict:
    """Choose the baseline's decay, then each method's setting, by held-out loss over ``splits``;
    score them on test.
    """
    decay = _best_decay(t, splits, config["decays"])
    final = candidates(t, t.new, decay, config, methods)
    held = [
        _losses(final if rows is t.new else candidates(t, rows, decay, config, methods), cases, t.y)
        for rows, cases in splits
    ]

    def loss_of(method: str, key: str) -> float:
        return sum(losses[method][key] for losses in held)

    curves = {m: models for m, models in final.items() if m in ("reverse-KD", "IMM")}
    chosen = {m: min(final[m], key=partial(loss_of, m)) for m in final}
    return {
        "decay": decay,
        "chosen": chosen,
        "test": {m: scores(final[m][key](t.test), t.y[t.test]) for m, key in chosen.items()},
        "curves": {m: list(losses.values()) for m, losses in _losses(curves, t.test, t.y).items()},
    }


def diagnostic(t: Task, decay: float, config: dict) -> float:
    """How much better than the baseline's induced model the target predicts held-out (s, y) pairs,
    in nats.
    """
    baseline, _ = fit(t.x[t.new], t.y[t.new], decay)
    contexts = imm.KernelContexts(t.s[t.new], config["bandwidth"])
    mixed = t.x[t.new].expand(len(t.valid), -1, -1).clone()
    mixed[:, :, t.sensor] = t.s[t.valid, None]
    induced = imm.induce(baseline(mixed), contexts.log_weights(t.s[t.valid]))
    y = t.y[t.valid]
    return scores(induced, y)["loss"] - scores(t.target(t.s[t.valid]).log(), y)["loss"]


def _units(config: dict, seed: int) -> list[dict]:
    return [
        {"sensor": sensor, "n": n, "seed": seed + i}
        for sensor, sizes in config["sensors"].items()
        for n in sizes
        for i in range(config["seeds"])
    ]


def _check(config: dict) -> None:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    names, cases = [str(name) for name in bunch.feature_names], sum(config["cases"].values())
    options.each("sensors", config["sensors"], names)
    for sensor, sizes in config["sensors"].items():
        for n in sizes:
            if not 2 <= n <= len(bunch.target) - cases:
                raise ValueError(
                    f"sensors/{sensor} must be sizes of 2 to {len(bunch.target) - cases}, got {n}"
                )
    if config["seeds"] < 2:
        raise ValueError(f"seeds must be at least 2, as intervals need, got {config['seeds']}")
    for name in ("lambdas", "decays", "weights"):
        options.filled(name, config[name])


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    t = task(unit["sensor"], unit["n"], unit["seed"], **config["cases"]).to(device)
    main = unit["sensor"] == next(iter(config["sensors"]))
    methods = ["reverse-KD", "interpolation", "offset", "IMM"]
    more = [f"IMM, bandwidth {b:g}" for b in config["other_bandwidths"]] + [
        "IMM, groups",
        "IMM, prior",
    ]
    numbers = _choose(t, [(t.new, t.valid)], config, methods + more if main else methods)
    numbers["diagnostic"] = diagnostic(t, numbers["decay"], config)
    numbers["target"] = scores(t.target(t.s[t.test]).log(), t.y[t.test])
    if main and unit["n"] in config["cross_validated"]:
        folds = torch.arange(len(t.new), device=device) % config["folds"]
        splits = [(t.new[folds != fold], t.new[folds == fold]) for fold in range(config["folds"])]
        cross = _choose(t, splits, config, methods)
        numbers["cross_validated"] = {key: cross[key] for key in ("decay", "chosen", "test")}
    return numbers


def cells(result: dict, sensor: str, n: int) -> list[dict]:
    """The numbers of all seeds of one sensor and size."""
    entries = [
        e["numbers"]
        for e in result["units"]
        if (e["unit"]["sensor"], e["unit"]["n"]) == (sensor, n)
    ]
    if not entries:
        raise ValueError(f"the result has no sensor {sensor!r} with n = {n!r}")
    return entries


def gain(
    entries: list[dict],
    method: str,
    score: str = "loss",
    choice: str | None = None,
    against: str = "baseline",
) -> tuple[float, float]:
    """Paired change of a test score, mean and half width: below 0 is better for "loss", above for
    "accuracy".
    """
    tests = [(e if choice is None else e[choice])["test"] for e in entries]
    return imm.results.mean_interval([test[method][score] - test[against][score] for test in tests])


_CONFIG = {
    "sensors": {
        "worst radius": [20, 40, 80],
        "mean radius": [20, 80],
        "worst concave points": [20, 80],
        "mean concave points": [20, 80],
    },
    "seeds": 20,
    "cases": {"old": 200, "valid": 100, "test": 189},
    "decays": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
    "lambdas": [0.1, 0.3, 1.0, 3.0, 10.0],
    "weights": [0.1, 0.25, 0.5, 0.75],
    "bandwidth": 0.3,
    "other_bandwidths": [0.1, 1.0],
    "groups": 6,
    "cross_validated": [20],
    "folds": 5,
}

EXPERIMENTS = [
    Experiment(
        name="sensors",
        description="breast-cancer data, one sensor of many cases helps all sensors of few (chapter 4)",
        scales={
            "full": _CONFIG,
            "ci": _CONFIG | {"sensors": {"worst radius": [20]}, "seeds": 3, "cross_validated": []},
        },
        units=_units,
        run=_run,
        table=partial(
            reading.listed, columns=["loss", "accuracy"], against="baseline", where="test/{method}"
        ),
        check=_check,
    )
]
