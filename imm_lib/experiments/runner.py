"""The one runner of all experiments: units of work, each saved when it is done.

An experiment lists its *units*, small JSON objects, and computes one unit at a time. The runner
writes every finished unit to a partial file before it takes the next, so that a kill at any moment
loses none of them; the result appears under its name when all are there.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from imm_lib import checks, data, origin, results
from imm_lib.device import allocations
from imm_lib.device import find as find_device
from imm_lib.experiments import keep, merge, options, workers
from imm_lib.experiments.catalogue import find, module_of
from imm_lib.experiments.progress import bar
from imm_lib.experiments.resume import beside, code, identity


@dataclass(frozen=True)
class Experiment:
    """What an experiment module offers as ``EXPERIMENTS``.

    Attributes:
        name: of the result's file, lower-case letters, digits and hyphens.
        scales: configuration by scale, JSON objects: "full", and "ci" for a quick look.
        units: (config, seed) -> list of JSON objects, one per unit of work.
        run: (unit, config, device) -> JSON object of numbers.
        table: result -> rows of text, the first of them the header; a ``table.Table``, or
            ``reading.listed`` of its columns.
        gpu: the full scale takes days without one, so that --all leaves it out on a CPU.
        devices: the kinds of device that it can run on.
        check: config -> nothing; raises ValueError or TypeError for one that cannot work.
    """

    name: str
    scales: dict[str, dict]
    units: Callable[[dict, int], list[dict]]
    run: Callable[[dict, dict, torch.device], dict]
    table: Callable[[dict], list[list[str]]]
    gpu: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    check: Callable[[dict], None] | None = None


class UnitError(RuntimeError):
    """A unit of work failed, or gave what JSON cannot hold; the message names it."""


class Task(NamedTuple):
    """A unit of work, as it goes to another process: functions do not travel, names do."""

    experiment: str
    unit: dict
    config: dict
    device: str
    folder: Path | None  # of its checkpoints


def file_name(experiment: Experiment, scale: str) -> str:
    """NAME for the full scale, NAME-SCALE for another, so that a quick look never replaces a full
    run.
    """
    return experiment.name if scale == "full" else f"{experiment.name}-{scale}"


def device_of(experiment: Experiment, name: str | torch.device) -> torch.device:
    """The device, if this machine has it and the experiment can run there; raises ValueError."""
    device = find_device(name)
    if device.type not in experiment.devices:
        raise ValueError(
            f"device must be {' or '.join(experiment.devices)} for {experiment.name}, got "
            f"{str(name)!r}"
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
    anew: bool = False,
    missing: bool = False,
    executor: Executor | None = None,
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
        anew: discard the units that an interrupted run has finished.
        missing: keep the units of the stored result, and run those that it lacks.
        executor: where units run instead, all handed over at once: any of ``concurrent.futures``,
            or a cluster's (``experiments.cluster``).

    Returns:
        The result's file.

    Raises:
        ValueError: an unknown scale or device, a seed or configuration that cannot work, a folder
            that cannot be written or is being written by another run of the same name, or a partial
            run that is neither resumed nor discarded, or is of another configuration, seed, device
            or code.
        UnitError: a unit failed.
    """
    options.check(experiment, scale)
    checks.count("jobs", jobs)
    if not 0 <= seed < 2**62:
        raise ValueError(f"seed must be in [0, 2^62), got {seed}")
    device = device_of(experiment, device)
    where, config = where or results.folder(), experiment.scales[scale]
    name = file_name(experiment, scale)
    # of the code that was imported, whatever happens to the files during the run
    commit, digest = results.commit(), code(module_of(experiment.name))
    key = {"config": config, "seed": seed, "device": str(device), "code": digest}
    key = json.loads(json.dumps(key))  # as it is read back: a file knows no tuples
    units = experiment.units(config, seed)
    options.distinct(experiment.name, units)
    with keep.locked(where, name):
        stored = merge.stored(name, where, key) if missing else None
        finished = keep.resumed(where, name, key, resume, anew, len(units))
        there = {identity(entry["unit"]) for entry in stored["units"]} if stored else set()
        pending = [unit for unit in units if identity(unit) not in finished.keys() | there]
        folders = [where / keep.PARTIAL / name / identity([unit, key])[:16] for unit in pending]
        keep.clean(where, name, {folder.name for folder in folders}, resume, anew)
        tasks = [
            Task(experiment.name, unit, config, str(device), folder)
            for unit, folder in zip(pending, folders, strict=True)
        ]
        done, total = len(finished), len(finished) + len(pending)
        with bar(total, initial=done, desc=name, unit="unit") as progress:
            for entry in _entries(experiment, tasks, jobs, executor):
                finished[identity(entry["unit"])] = entry
                keep.write(where, name, key, list(finished.values()))
                progress.update()
        keep.clean(where, name, set(), anew=True)
        command = command or (
            f"python -m imm_lib run {experiment.name} --scale {scale} --seed {seed} "
            f"--device {device}"
        )
        said = {"experiment": experiment.name, "scale": scale, "config": config, "seed": seed}
        said |= {"command": command, "commit": commit}
        entries = [finished[identity(unit)] for unit in units if identity(unit) in finished]
        written = results.save(merge.joined(stored, said, entries, units), name, where)
        if missing:  # they are in the result, and no series goes on with them
            keep.file(where, name).unlink(missing_ok=True)
        return written


def forget(experiment: Experiment, scale: str = "full", where: Path | None = None) -> None:
    """Delete what ``run`` keeps for ``resume``; it is left in place so that a series of runs can be
    resumed whole.
    """
    kept = keep.file(where or results.folder(), file_name(experiment, scale))
    kept.unlink(missing_ok=True)
    if kept.parent.is_dir() and not any(kept.parent.iterdir()):
        kept.parent.rmdir()


def work(experiment: Experiment, task: Task) -> dict:
    """One unit, done, checked and timed, with where it was done and in what memory.

    Raises:
        UnitError: whatever went wrong in it, but for missing data, packages and memory, which are
            the machine's.
    """
    device, start = torch.device(task.device), time.perf_counter()
    before = allocations(device)
    said = f"{task.experiment}, unit {json.dumps(task.unit, ensure_ascii=False)}"
    try:
        with beside(task.folder):
            numbers = experiment.run(task.unit, task.config, device)
        merge.check_numbers(numbers, "numbers")
    except (data.DataError, ImportError, MemoryError, OSError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        raise UnitError(f"{said}: {type(error).__name__}: {error} ({place})") from error
    idle = device.type != "cpu" and allocations(device) == before
    where = torch.device("cpu") if idle else device
    return {
        "unit": task.unit,
        "numbers": numbers,
        "wall_s": round(time.perf_counter() - start, 3),
        "device": origin.device_name(where),
        "versions": origin.versions(),
        "peak_memory_bytes": origin.peak_memory(where),
    }


def work_by_name(task: Task) -> dict:
    """The same in another process, where the experiment is found by its name."""
    return work(find(task.experiment), task)


def _entries(
    experiment: Experiment, tasks: list[Task], jobs: int, executor: Executor | None
) -> Iterator[dict]:
    """Every unit's entry, as soon as it is done."""
    if executor is not None:
        futures = [executor.submit(work_by_name, task) for task in tasks]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            for future in futures:
                future.cancel()
    elif jobs == 1:
        yield from (work(experiment, task) for task in tasks)
    else:
        yield from (entry for _, entry in workers.answers(work_by_name, tasks, jobs))
