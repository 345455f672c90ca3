"""How long the paper's language models take on this machine: seconds of an epoch by arm, and in
what it pays to compute.

The first units ask for the fastest way that holds the CPU's loss to 1 %; the others measure a step
of each kind of arm in that way, so that what fits into the minutes that are left can be told.
"""

import contextlib
import itertools
import time

import torch

from imm_lib.experiments import Experiment, options
from imm_lib.experiments.language import arms, runs
from imm_lib.experiments.language.measures import label_log_probs
from imm_lib.experiments.language.training import HOW, How, Run

HOWS = {
    "float32": How(half=False),
    "bfloat16": How(),
    "bfloat16, compiled": How(compiled="default"),
    "bfloat16, compiled with CUDA graphs": How(compiled="reduce-overhead"),
}
"""From the plainest on. On a CPU all compute in float32."""

TOLERANCE = 0.01
"""Relative, of the loss of the first steps without dropout, against the CPU's in float32."""


@contextlib.contextmanager
def how(value: How):
    """Trainings that begin in this block compute in this way."""
    token = HOW.set(value)
    try:
        yield
    finally:
        HOW.reset(token)


def _begin(config: dict, arm: str, device: torch.device, **changes: object) -> Run:
    """An arm's run, its weights drawn, at the first step."""
    spec = {**config["settings"], **config["arms"][arm], **changes}
    corpus = runs.texts(config["corpus"], config["lines"], 0, config["held_out"]).to(device)
    settings = runs._settings(spec, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of weights on the CPU, the same on every device
        return Run(corpus, runs.build(spec, corpus, settings, 0), settings)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _steps(run: Run, count: int = 0, seconds: float = 0.0) -> tuple[float, float]:
    """Seconds of a step, of ``count`` steps or of as many as ``seconds`` hold; their mean loss."""
    state, losses = run.model.train().begin(run.settings.batch), []
    for group in run.optimiser.param_groups:
        group["lr"] = run.lr
    _wait(run.device)
    start = time.perf_counter()
    for number, block in enumerate(itertools.chain.from_iterable(itertools.repeat(run.train))):
        run.optimiser.zero_grad(set_to_none=True)
        value, state = run.step(block, state, number, True)
        run.optimiser.step()
        losses.append(value)
        if len(losses) >= max(1, count) and time.perf_counter() - start >= seconds:
            break
    _wait(run.device)
    return (time.perf_counter() - start) / len(losses), sum(losses) / len(losses)


def _way(unit: dict, config: dict, device: torch.device) -> dict:
    """Seconds of the plain step in one way, and its first losses without dropout, to be compared
    with the CPU's.
    """
    arm = next(iter(config["arms"]))
    with how(HOWS[unit["way"]]):
        try:
            _, found = _steps(_begin(config, arm, device, dropout=0.0), config["compared"])
            run = _begin(config, arm, device)
            _steps(run, config["warm"])
            seconds, _ = _steps(run, seconds=config["seconds"])
        except Exception as error:  # no compiler, say: then it is not taken
            return {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"step_s": seconds, "loss": found}


def _arm(unit: dict, config: dict, device: torch.device) -> dict:
    """Seconds of an arm's epoch, from those of a step, of its pass over the text, and
    validation.
    """
    run = _begin(config, unit["arm"], device)
    _wait(device)
    start = time.perf_counter()
    run.term.begin_epoch(run.model, run.train, True)
    _wait(device)
    swept = time.perf_counter()
    label_log_probs(run.model, run.valid)
    _wait(device)
    validated = time.perf_counter()
    _steps(run, config["warm"])
    step, _ = _steps(run, seconds=config["seconds"])
    times = {"step_s": step, "sweep_s": swept - start, "valid_s": validated - swept}
    epoch = len(run.train) * step + times["sweep_s"] + times["valid_s"]
    return {**times, "blocks": len(run.train), "epoch_s": epoch}


def best(units: list[dict], loss: float) -> str:
    """The fastest way of those that hold a loss, the CPU's; float32 where none does."""
    held = {
        entry["unit"]["way"]: entry["numbers"]["step_s"]
        for entry in units
        if "loss" in entry["numbers"] and abs(entry["numbers"]["loss"] - loss) <= TOLERANCE * loss
    }
    return min(held, key=held.__getitem__) if held else "float32"


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    return _way(unit, config, device) if "way" in unit else _arm(unit, config, device)


def _check(config: dict) -> None:
    options.each("ways", config["ways"], HOWS)
    if config["seconds"] <= 0:
        raise ValueError(f"seconds must be above 0, got {config['seconds']}")
    runs.check({**config, "sizes": [[config["lines"], 1]]})


def _table(result: dict) -> list[list[str]]:
    rows = [["way or arm", "step, ms", "loss", "epoch, s"]]
    for entry in result["units"]:
        unit, numbers = entry["unit"], entry["numbers"]
        name = unit.get("way") or unit["arm"]
        if "failed" in numbers:
            rows.append([name, "failed", numbers["failed"], ""])
            continue
        loss = f"{numbers['loss']:.4f}" if "loss" in numbers else ""
        epoch = f"{numbers['epoch_s']:.1f}" if "epoch_s" in numbers else ""
        rows.append([name, f"{1000 * numbers['step_s']:.2f}", loss, epoch])
    return rows


_ARMS = {
    "baseline": {},
    "moving average, λ = 1": {"term": "moving average", "lam": 1.0},
    "cached states, λ = 0.2": {"term": "sampled", "lam": 0.2},
}
_FULL = {
    **{"corpus": "ptb", "lines": runs.LINES, "held_out": None, "settings": arms.PAPER},
    **{"arms": _ARMS, "ways": list(HOWS), "compared": 3, "warm": 10, "seconds": 4.0},
}
_QUICK = {
    **{"lines": 100, "held_out": 100, "settings": {"width": 16, "dropout": 0.2}},
    **{"ways": ["float32", "bfloat16"], "warm": 1, "seconds": 0.1},
}

EXPERIMENTS = [
    Experiment(
        name="language-profile",
        scales={"full": _FULL, "ci": {**_FULL, **_QUICK}},
        units=lambda config, seed: [
            *({"way": way} for way in config["ways"]),
            *({"arm": arm} for arm in config["arms"]),
        ],
        run=_run,
        table=_table,
        gpu=True,
        check=_check,
    )
]
