"""IMM on a small real data set (chapter 4): an old system reads one sensor of many cases, a new
one all of few.

Every unit is one random partition of the breast-cancer data that scikit-learn ships: ``old`` cases,
of which only the sensor and the label are used, to fit the restricted model; n ``new`` cases with
all sensors, to train on; cases to choose settings with; cases to test on. All methods of a unit see
the same partition, so that they are paired. ``python -m imm_lib.experiments.sensors`` draws the
stored result into book/_static/payoff.svg, for the front page.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss

import imm_lib as imm
from imm_lib.experiments import Experiment, options, reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = {
    "baseline": imm.plotting.METHOD_STYLE["baseline"],
    "interpolation": imm.plotting.METHOD_STYLE["interpolation"],
    "reverse-KD": imm.plotting.METHOD_STYLE["reverse-KD"],
    "offset": imm.plotting.Style("#661100", "p", ":"),
    "IMM": imm.plotting.METHOD_STYLE["IMM exact"],
}
"""The methods of the front page's picture, by their names in results, and how they look."""

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


def payoff(result: dict) -> dict:
    """What the front page's picture draws, for the first sensor: mean test losses, and paired
    changes ± half widths.
    """
    sensor, sizes = next(iter(result["config"]["sensors"].items()))
    at = [cells(result, sensor, n) for n in sizes]
    return {
        "sensor": sensor,
        "n": sizes,
        "target": [
            imm.results.mean_interval([e["target"]["loss"] for e in entries])[0] for entries in at
        ],
        "loss": {
            m: [imm.results.mean_interval([e["test"][m]["loss"] for e in es])[0] for es in at]
            for m in METHODS
        },
        "gain": {m: [gain(es, m) for es in at] for m in METHODS if m != "baseline"},
    }


def draw(result: dict) -> Figure:
    """Two panels: test loss over n, and what each method changes against the baseline, with 95 %
    intervals.
    """
    from matplotlib import pyplot

    numbers = payoff(result)
    figure, (left, right) = pyplot.subplots(2, 1, figsize=(5.0, 5.6), sharex=True)
    left.plot(
        numbers["n"],
        numbers["target"],
        label="restricted model",
        **imm.plotting.METHOD_STYLE["target"]._asdict(),
    )
    for i, (method, style) in enumerate(METHODS.items()):
        look = style._asdict()
        left.plot(numbers["n"], numbers["loss"][method], label=method, **look)
        if method in numbers["gain"]:
            middle, half = zip(*numbers["gain"][method], strict=True)
            shifted = [n * 1.03 ** (2 * i - 5) for n in numbers["n"]]
            right.errorbar(shifted, middle, half, label=method, capsize=3, **look)
    right.axhline(0, color="black", linewidth=1)
    left.set_ylabel("test log-loss (nats)")
    right.set_ylabel("change (nats)")
    right.set_xlabel("cases with all sensors, n")
    right.set_xscale("log", base=2)
    right.set_xticks(numbers["n"], [str(n) for n in numbers["n"]])
    right.minorticks_off()
    left.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False)
    return figure


def curve(result: dict, sensor: str, n: int, method: str) -> list[tuple[float, float]]:
    """Paired change of the test loss at every weight of the extra term, none of them selected: mean
    and half width.
    """
    losses = [e["curves"][method] for e in cells(result, sensor, n)]
    return [
        imm.results.mean_interval([loss[i] - loss[0] for loss in losses])
        for i in range(1, len(losses[0]))
    ]


def draw_curves(result: dict) -> Figure:
    """The first sensor's curves over the weight, for the smallest (above) and the largest n
    (below).
    """
    from matplotlib import pyplot

    sensor, sizes = next(iter(result["config"]["sensors"].items()))
    figure, axes = pyplot.subplots(2, 1, figsize=(5.0, 5.2), sharex=True)
    for ax, n in zip(axes, (sizes[0], sizes[-1]), strict=True):
        for style, method in (("reverse-KD", "reverse-KD"), ("IMM exact", "IMM")):
            pairs = curve(result, sensor, n, method)
            low, mid, high = ([m + sign * half for m, half in pairs] for sign in (-1, 0, 1))
            imm.plotting.band(ax, result["config"]["lambdas"], low, mid, high, style)
        ax.axhline(0, color="black", linewidth=1)
        ax.set(xscale="log", ylabel="change (nats)", title=f"n = {n}")
    axes[0].legend()
    axes[1].set_xlabel("weight λ")
    return figure


def diagnostics(result: dict) -> list[dict]:
    """For every sensor and n: how far the target is ahead, IMM's change, and how the two go
    together over the seeds.
    """
    from scipy.stats import spearmanr

    rows = []
    for sensor, sizes in result["config"]["sensors"].items():
        for n in sizes:
            entries = cells(result, sensor, n)
            ahead = [e["diagnostic"] for e in entries]
            change = [e["test"]["IMM"]["loss"] - e["test"]["baseline"]["loss"] for e in entries]
            rows.append(
                {
                    "sensor": sensor,
                    "n": n,
                    "ahead": imm.results.mean_interval(ahead),
                    "change": imm.results.mean_interval(change),
                    "rank correlation": float(spearmanr(ahead, change).statistic),
                    "behind": [c for a, c in zip(ahead, change, strict=True) if a <= 0],
                }
            )
    return rows


def draw_diagnostics(result: dict) -> Figure:
    """IMM's change of the test loss over how far the target is ahead, a marker per sensor, a colour
    per n.
    """
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(5.0, 3.8))
    rows = diagnostics(result)
    sizes = sorted({row["n"] for row in rows})
    colors = dict(zip(sizes, imm.plotting.COLORS.values(), strict=False))
    markers = dict(zip(result["config"]["sensors"], "o^sD", strict=True))
    for row in rows:
        (x, x_half), (y, y_half) = row["ahead"], row["change"]
        look = {
            "color": colors[row["n"]],
            "fmt": markers[row["sensor"]],
            "linewidth": 1,
            "capsize": 2,
        }
        ax.errorbar(x, y, y_half, x_half, **look)
        ax.annotate(
            str(row["n"]),
            (x, y),
            (5, 5),
            textcoords="offset points",
            fontsize=10,
            color=colors[row["n"]],
        )
    for sensor, marker in markers.items():
        ax.plot([], [], marker, color="#555555", label=sensor)
    ax.axhline(0, color="black", linewidth=1)
    ax.set(xlabel="target ahead (nats)", ylabel="change by IMM (nats)")
    ax.legend(loc="lower left")
    return figure


def write_picture(result: dict, file: Path) -> None:
    """Save the picture as SVG, with the numbers it draws as its description, so that a test can
    compare them.
    """
    from matplotlib import pyplot

    imm.plotting.use_style()
    figure = draw(result)
    figure.savefig(file, metadata={"Date": None, "Description": json.dumps(payoff(result))})
    pyplot.close(figure)


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

if __name__ == "__main__":
    write_picture(
        imm.results.load("sensors"), Path(imm.results.folder()).parent / "_static" / "payoff.svg"
    )
