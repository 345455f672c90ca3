"""CPU seconds of the grid's programs, and their growth with the grid."""

import time

import torch

from imm_lib.experiments import Experiment
from imm_lib.experiments.grid import runs
from imm_lib.experiments.grid.learning import learn
from imm_lib.experiments.grid.torus import Torus


def _seconds(torus: Torus, count: int, epochs: int, lam: float) -> float:
    """CPU seconds of ``epochs`` epochs of ``count`` runs, solving the POMDP not included."""
    target = runs.target(torus, "split")
    start = time.process_time()
    steps = learn(torus, count, torch.Generator().manual_seed(0), target, lam)
    for _ in zip(range(epochs), steps, strict=False):
        pass
    return time.process_time() - start


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    if unit["part"] == "figures":
        settings = {"runs": config["runs"], "epochs": config["epochs"], "targets": runs.ARMS[1:]}
        start = time.process_time()
        for arm in runs._arms(settings, 0):
            runs._figures(arm, settings, device)
        return {"cpu_s": time.process_time() - start}
    epochs = config["measured"]
    seconds = _seconds(Torus(unit["size"]), config["runs"], epochs, 0.25)
    return {"cpu_s": seconds * max(config["epochs"]) / epochs}


def _units(config: dict, seed: int) -> list[dict]:
    return [{"part": "figures"}, *({"part": "learning", "size": size} for size in config["sizes"])]


def _table(result: dict) -> list[list[str]]:
    config = result["config"]
    epochs = max(config["epochs"])
    rows = [["program", "CPU seconds"]]
    for entry in result["units"]:
        size = entry["unit"].get("size")
        name = f"{epochs} epochs with IMM, N = {size}" if size else "Figures 2 and 9, 60 cells"
        rows.append([f"{name}, {config['runs']} runs", f"{entry['numbers']['cpu_s']:.1f}"])
    return rows


_FULL = {"runs": 30, "epochs": runs.EPOCHS, "sizes": [11, 21, 51], "measured": 100}

EXPERIMENTS = [
    Experiment(
        name="bench-grid",
        scales={
            "full": _FULL,
            "ci": {**_FULL, "runs": 2, "epochs": [1, 2], "sizes": [5], "measured": 1},
        },
        units=_units,
        run=_run,
        table=_table,
        devices=("cpu",),  # it counts CPU seconds
    )
]
