"""The experiments by name, and the one runner that they share: units of work, each saved when it is
done.

An experiment lists its *units*, small JSON objects, and computes one unit at a time. The runner
writes every finished unit to a partial file before it takes the next, so that a kill at any moment
loses none of them; the result appears under its name when all are there.
"""

import hashlib
import importlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from imm_lib import checks, results

MODULES = (
    "kneser_ney",
    "logistic",
    "grid",
    "language",
    "masked",
    "side",
    "sensors",
    "clinic",
    "bench",
)


@dataclass(frozen=True)
class Experiment:
    """What an experiment module offers as ``EXPERIMENTS``.

    Attributes:
        name: of the result's file, lower-case letters, digits and hyphens.
        description: one line.
        scales: configuration by scale, JSON objects: "full", and "ci" for a quick look.
        units: (config, seed) -> list of JSON objects, one per unit of work.
        run: (unit, config, device) -> JSON object of numbers.
        table: result -> rows of text, the first of them the header.
        gpu: the full scale takes days without one, so that --all leaves it out on a CPU.
    """

    name: str
    description: str
    scales: dict[str, dict]
    units: Callable[[dict, int], list[dict]]
    run: Callable[[dict, dict, torch.device], dict]
    table: Callable[[dict], list[list[str]]]
    gpu: bool = False


def registry() -> dict[str, Experiment]:
    """Every experiment by name, in the order of the book."""
    modules = [importlib.import_module(f"imm_lib.experiments.{module}") for module in MODULES]
    return {experiment.name: experiment for module in modules for experiment in module.EXPERIMENTS}


def find(name: str) -> Experiment:
    """The experiment of that name; raises ValueError listing the known ones."""
    known = registry()
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def check_scale(experiment: Experiment, scale: str) -> None:
    """Raise ValueError, listing the known ones, unless the experiment has that scale."""
    if scale not in experiment.scales:
        raise ValueError(f"scale must be one of {', '.join(experiment.scales)}, got {scale!r}")


def adjusted(experiment: Experiment, scale: str, changes: dict) -> Experiment:
    """The experiment with other values in one scale's configuration.

    Args:
        experiment: what is adjusted; it is not changed.
        scale: one of ``experiment.scales``.
        changes: new values by name. A value has the type of the one that it replaces, or is a whole
            number for a real one, or stands where there was None; lists and objects are replaced
            whole, and not looked into.

    Raises:
        ValueError: an unknown scale, a name that the configuration does not have, or a value of
            another type.
    """
    check_scale(experiment, scale)
    config = experiment.scales[scale]
    for name, value in changes.items():
        if name not in config:
            raise ValueError(
                f"{experiment.name} has no {name!r}: it must be one of {', '.join(config)}"
            )
        kinds = {float: (float, int), tuple: (list, tuple), type(None): (type(value),)}
        fits = type(value) in kinds.get(type(config[name]), (type(config[name]),))
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(
                f"{name} must be like {json.dumps(config[name])}, got {json.dumps(value)}"
            )
    return replace(experiment, scales={**experiment.scales, scale: {**config, **changes}})


def file_name(experiment: Experiment, scale: str) -> str:
    """NAME for the full scale, NAME-SCALE for another, so that a quick look never replaces a full
    run.
    """
    return experiment.name if scale == "full" else f"{experiment.name}-{scale}"


def _partial(experiment: Experiment, scale: str, where: Path) -> Path:
    return where / ".partial" / f"{file_name(experiment, scale)}.json"


def _resumed(file: Path, key: dict) -> list[dict]:
    """Finished units of an interrupted run; none where there was none."""
    try:
        partial = results.read_json(file)
    except FileNotFoundError:
        return []
    if not isinstance(partial, dict) or not isinstance(partial.get("units"), list):
        raise results.ResultError(
            f"{file.name}: not what an interrupted run leaves; run without --resume"
        )
    differing = [field for field in key if partial.get(field) != key[field]]
    if differing:
        raise ValueError(
            f"resume: {file.name} was begun with another {', '.join(differing)}; run without --resume to begin anew"
        )
    return partial["units"]


def _device(name: str | torch.device) -> torch.device:
    """The device, if this machine has it; raises ValueError."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {str(name)!r}")
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= found:
        raise ValueError(
            f"device must be one that this machine has, got {str(name)!r} with {found} of that kind"
        )
    return device


def run(
    experiment: Experiment,
    scale: str = "full",
    seed: int = 0,
    device: str | torch.device = "cpu",
    resume: bool = False,
    where: Path | None = None,
    command: str = "",
    jobs: int = 1,
) -> Path:
    """Run all units of an experiment, with a progress bar, and write its result.

    Args:
        experiment: what to run.
        scale: one of ``experiment.scales``.
        seed: handed to ``experiment.units``.
        device: "cpu", "cuda", ...
        resume: keep the units that an interrupted run has finished; of the same configuration,
        seed, device and code.
        where: folder of the result; by default :func:`imm_lib.results.folder`.
        command: what reproduces the run, stored with it.
        jobs: units that run at a time, each in a process of its own where it is more than 1.

    Returns:
        The result's file.

    Raises:
        ValueError: an unknown scale or device, a folder that cannot be written, or a partial run of
            another configuration, seed, device or code.
    """
    check_scale(experiment, scale)
    checks.count("jobs", jobs)
    device = _device(device)
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "running experiments needs tqdm: pip install 'imm_lib[data,experiments]'"
        ) from error
    where, config = where or results.folder(), experiment.scales[scale]
    commit = (
        results.commit()
    )  # of the code that was imported, whatever happens to the files during the run
    key = {"config": config, "seed": seed, "device": str(device), "code": results.code()}
    key = json.loads(json.dumps(key))  # as it is read back: a file knows no tuples
    partial = _partial(experiment, scale, where)
    try:
        partial.parent.mkdir(
            parents=True, exist_ok=True
        )  # now, and not after the first unit's hour
    except OSError as error:
        raise ValueError(
            f"out must be a folder that can be written, got {str(where)!r}: {error.strerror}"
        ) from None
    if not os.access(partial.parent, os.W_OK):
        raise ValueError(f"out must be a folder that can be written, got {str(where)!r}")
    units = experiment.units(config, seed)
    done = _resumed(partial, key) if resume else []
    finished = {_identity(entry["unit"]): entry for entry in done}
    pending = [unit for unit in units if _identity(unit) not in finished]
    with tqdm(
        total=len(units), initial=len(finished), desc=file_name(experiment, scale), unit="unit"
    ) as bar:
        for entry in _entries(experiment, pending, config, device, jobs):
            finished[_identity(entry["unit"])] = entry
            results.write_json(partial, {**key, "units": list(finished.values())})
            bar.update()
    entries = [finished[_identity(unit)] for unit in units]
    result = {
        "schema": results.SCHEMA_VERSION,
        "experiment": experiment.name,
        "scale": scale,
        "config": config,
        "seed": seed,
        "units": entries,
        "wall_s": round(sum(entry["wall_s"] for entry in entries), 3),
        "command": command
        or f"python -m imm_lib run {experiment.name} --scale {scale} --seed {seed} --device {device}",
        "commit": commit,
        **results.provenance(device),
    }
    return results.save(result, file_name(experiment, scale), where)


def _entry(experiment: Experiment, unit: dict, config: dict, device: torch.device) -> dict:
    """One unit, done and timed."""
    start = time.perf_counter()
    numbers = experiment.run(unit, config, device)
    return {"unit": unit, "numbers": numbers, "wall_s": round(time.perf_counter() - start, 3)}


def _named_entry(name: str, *rest: object) -> dict:
    """The same in another process, which takes the experiment by its name: functions do not travel."""
    return _entry(find(name), *rest)


def _entries(
    experiment: Experiment, units: list[dict], config: dict, device: torch.device, jobs: int
) -> Iterator[dict]:
    """Every unit's entry, as soon as it is done."""
    if jobs == 1:
        yield from (_entry(experiment, unit, config, device) for unit in units)
        return
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    try:
        waiting = [
            pool.submit(_named_entry, experiment.name, unit, config, device) for unit in units
        ]
        yield from (future.result() for future in as_completed(waiting))
    finally:
        pool.shutdown(cancel_futures=True)


def forget(experiment: Experiment, scale: str = "full", where: Path | None = None) -> None:
    """Delete what ``run`` keeps for ``resume``; it is left in place so that a series of runs can be
    resumed whole.
    """
    _partial(experiment, scale, where or results.folder()).unlink(missing_ok=True)


def _identity(unit: dict) -> str:
    return hashlib.sha256(json.dumps(unit, sort_keys=True).encode()).hexdigest()
