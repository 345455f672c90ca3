"""The batched program's cost against a loop over runs with the library's estimators under
autograd.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import imm_lib as imm
from imm_lib.experiments import Experiment, options
from imm_lib.experiments.logistic.problem import Data, Plane
from imm_lib.experiments.logistic.runs import LARGEST, SIZES
from imm_lib.experiments.logistic.training import train
from imm_lib.experiments.logistic.units import TRAINED
from imm_lib.experiments.paper import schedule


def one_run(
    plane: Plane, data: Data, run: int, method: str, rho: float, steps: int, lr: float = 1.0
) -> Tensor:
    """The slow twin of ``train`` for one run: the library's names, autograd and an optimiser;
    returns (4,) weights.
    """
    x1, rest, label = data.short[:, run], data.extended[:, :, run].T, data.label[:, run]
    weights = torch.zeros(4, dtype=x1.dtype, requires_grad=True)
    optimiser = torch.optim.SGD([weights], lr)

    def model(short: Tensor, extended: Tensor) -> Tensor:
        logit = weights[0] * short + rest[extended] @ weights[1:3] + weights[3]
        return torch.nn.functional.logsigmoid(torch.stack([-logit, logit], 1))

    def target(short: Tensor) -> Tensor:
        one = plane.restricted(short)
        return torch.stack([1 - one, one], 1)

    contexts, points = imm.KernelContexts(x1), torch.arange(len(x1))
    estimator = imm.ExactIMM(target, contexts)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = torch.nn.functional.nll_loss(model(x1, points), label.long())
        if method == "IMM exact":
            loss = (1 - rho) * loss + rho * estimator(model, x1)
        elif method == "noising":
            log_q = model(x1.repeat_interleave(len(x1)), points.repeat(len(x1)))
            pairs = log_q.view(len(x1), len(x1), 2)
            risk = imm.noising_risk(target(x1), pairs, contexts.log_weights(x1))
            loss = (1 - rho) * loss + rho * risk.mean()
        loss.backward()
        optimiser.step()
    return weights.detach()


def _cpu_seconds(work: Callable[..., Tensor], *args: Any, **settings: Any) -> float:
    start = time.process_time()
    work(*args, **settings)
    return time.process_time() - start


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    """CPU seconds of all runs and steps: measured for the batched program, measured per step for
    the loop.
    """
    plane, rho, steps = Plane(), schedule(unit["n"]), config["loop_steps"]
    data = plane.draw(config["runs"], LARGEST, torch.Generator().manual_seed(0)).first(unit["n"])
    batched, loop = {}, {}
    for method in TRAINED:
        train(data, method, rho, steps=20)
        batched[method] = _cpu_seconds(train, data, method, rho, steps=config["steps"])
        times = [
            _cpu_seconds(one_run, plane, data, 0, method, rho, steps)
            for _ in range(config["repeats"])
        ]
        loop[method] = statistics.median(times) / steps * config["steps"] * config["runs"]
    return {"batched_cpu_s": batched, "loop_cpu_s": loop}


def totals(result: dict) -> tuple[float, float]:
    """CPU seconds of the whole sweep: the batched program, and the loop over runs."""
    every = [entry["numbers"] for entry in result["units"]]
    batched, loop = (
        sum(sum(numbers[part].values()) for numbers in every)
        for part in ("batched_cpu_s", "loop_cpu_s")
    )
    return batched, loop


def _table(result: dict) -> list[list[str]]:
    batched, loop = totals(result)
    return [
        ["Figure 1's sweep", "CPU seconds"],
        ["batched program", f"{batched:.1f}"],
        ["loop over runs, extrapolated", f"{loop:.0f}"],
        ["ratio", f"{loop / batched:.0f}"],
    ]


_FULL = {"runs": 300, "steps": 3000, "sizes": SIZES, "loop_steps": 30, "repeats": 7}

EXPERIMENTS = [
    Experiment(
        name="bench-logistic",
        scales={
            "full": _FULL,
            "ci": {**_FULL, "runs": 10, "steps": 20, "sizes": [5], "repeats": 1},
        },
        units=lambda config, seed: [{"n": n} for n in config["sizes"]],
        run=_run,
        table=_table,
        check=lambda config: options.at_most("sizes", config["sizes"], LARGEST),
        devices=("cpu",),  # it counts CPU seconds
    )
]
