"""What ``python -m imm_lib run sensors`` computes and stores: settings chosen by held-out loss, and
scores on test cases.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import imm_lib as imm
from imm_lib.experiments import Experiment, reading
from imm_lib.experiments.sensors.problem import Model, Task, candidates, fit, mixed, scores, task


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
    pairs = t.s[t.valid], t.y[t.valid]
    return imm.premise.lead(mixed(baseline, t, t.new), contexts, t.target, *pairs).ahead


def _units(config: dict, seed: int) -> list[dict]:
    return [
        {"sensor": sensor, "n": n, "seed": seed + i}
        for sensor, sizes in config["sensors"].items()
        for n in sizes
        for i in range(config["seeds"])
    ]


def _check(config: dict) -> None:
    for sensor, sizes in config["sensors"].items():
        for n in sizes:
            task(sensor, n, 0, **config["cases"])
    if config["seeds"] < 2:
        raise ValueError(f"seeds must be at least 2, as intervals need, got {config['seeds']}")


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
