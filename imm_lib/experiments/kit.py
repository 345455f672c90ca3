"""What minutes on a GPU are worth most: a queue over the experiments that want one.

In this order: the core's tests there, a profile of the language model's step that predicts what
fits, Tables 1 and 5, Table 2, all chapters. Every unit is stored when it is done, and joins what is
stored already, so that later minutes add seeds and arms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from imm_lib import results
from imm_lib.experiments import keep, merge, options, workers
from imm_lib.experiments.catalogue import find
from imm_lib.experiments.queue import UNKNOWN, Item, Queue, attempt
from imm_lib.experiments.resume import identity
from imm_lib.experiments.runner import Experiment, Task, device_of, file_name

STAGES = ("tests", "profile", "table1", "table2", "chapters")
ROOT = Path(__file__).resolve().parents[2]
TESTED = (
    "contexts",
    "divergences",
    "estimators",
    "induced",
    "segments",
    "tabular",
    "worth",
    "zeros",
)
TABLE_1 = {
    "baseline": "baseline",
    "KN noising": "baseline",
    "moving average, λ = 1": "moving average, λ = 1",
    "cached states, λ = 0.2": "cached states, λ = 0.2",
    "reverse-KD, λ = 0.2": "moving average, λ = 1",
}
"""The arms of Tables 1 and 5, the ones that matter most first, each with the one that is profiled
and takes as long.
"""
TABLE_2 = ("masked-cola-all", "masked-mrpc-all", "masked-rte-all")
SPARE = 1.1
"""What still runs at the end has a tenth of the time more before it is stopped."""
BEGIN = 15.0
"""Seconds that a process takes to import torch and to find its GPU."""


class Kit:
    """A sitting of some minutes on one device. Everything that it stores, it holds the lock of.

    Args:
        minutes: until which what begins must end.
        jobs: units at a time.
        device: where they run.
        where: folder of the results.
        scale: "full", or "ci" for a look at the machinery.
        command: stored with the results.
    """

    def __init__(
        self, minutes: float, jobs: int, device: str, where: Path, scale: str, command: str
    ):
        if not (math.isfinite(minutes) and minutes > 0):
            raise ValueError(f"minutes must be a number above 0, got {minutes}")
        if jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {jobs}")
        self.start = time.monotonic()
        self.end, self.stop = self.start + 60 * minutes, self.start + 60 * SPARE * minutes
        self.jobs, self.where, self.scale, self.command = jobs, where, scale, command
        names = ("language-profile", "language-paper", "masked-pretrain", *TABLE_2)
        self.experiments = {name: find(name) for name in names}
        for experiment in self.experiments.values():
            options.check(experiment, scale)
            self.device = str(device_of(experiment, device))
        self.commit, self.way, self.seconds = results.commit(), "bfloat16", dict[str, float]()
        self.held: dict[str, dict | None] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[Path]:
        """Locks, what is stored already, and a folder for checkpoints, which goes at the end."""
        with contextlib.ExitStack() as stack:
            for name, experiment in self.experiments.items():
                stack.enter_context(keep.locked(self.where, file_name(experiment, self.scale)))
                self.held[name] = merge.stored(
                    file_name(experiment, self.scale), self.where, self._key(experiment)
                )
            yield Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def _key(self, experiment: Experiment) -> dict:
        return {"config": experiment.scales[self.scale], "seed": 0}

    def say(self, text: str) -> None:
        """A line with the time since the start."""
        print(f"[{time.monotonic() - self.start:5.0f} s] {text}", flush=True)

    def items(self, name: str, folder: Path) -> list[Item]:
        """The units of an experiment that are not stored yet, each a kind of its own."""
        experiment = self.experiments[name]
        config, held = experiment.scales[self.scale], self.held[name]
        there = {identity(entry["unit"]) for entry in held["units"]} if held else set()
        return [
            Item(
                f"{name} {identity(unit)[:8]}",
                Task(name, unit, config, self.device, folder / identity([name, unit])[:16]),
                self.way,
            )
            for unit in experiment.units(config, 0)
            if identity(unit) not in there
        ]

    def store(self, name: str, entry: dict) -> None:
        """An entry joins the result of its name, at once."""
        experiment = self.experiments[name]
        said = {"experiment": name, "scale": self.scale, **self._key(experiment)}
        said |= {"command": self.command, "commit": self.commit}
        units = experiment.units(experiment.scales[self.scale], 0)
        joined = merge.joined(self.held[name], said, [entry], units)
        results.save(joined, file_name(experiment, self.scale), self.where)
        self.held[name] = joined

    def work_off(self, items: list[Item], jobs: int) -> list[tuple[Item, dict]]:
        """Every item that fits, stored when it is done."""
        queue, found = Queue(items, self.end, self.seconds), []
        for item, answer in workers.answers(attempt, queue, jobs, self.stop):
            unit = ", ".join(f"{key} {value}" for key, value in item.task.unit.items())
            if isinstance(answer, str):
                self.say(f"failed: {item.task.experiment}, {unit}: {answer}")
                continue
            queue.measured(item, answer["wall_s"])
            self.store(item.task.experiment, answer)
            self.say(f"{item.task.experiment}, {unit}: {answer['wall_s']:.0f} s")
            found.append((item, answer))
        self.seconds = queue.seconds
        if queue.items:
            self.say(f"not begun: {len(queue.items)} units of {len(items)}")
        return found

    def profile(self, folder: Path) -> None:
        """Which way is fastest, then seconds of an epoch by arm with ``jobs`` at a time."""
        from imm_lib.experiments.language import profile

        self.held["language-profile"] = None  # of this machine and this number at a time
        items = self.items("language-profile", folder)
        ways = self.work_off([item for item in items if "way" in item.task.unit], 1)
        self.way = profile.best([entry for _, entry in ways], self.loss(items[0]))
        self.say(f"the fastest way that holds the CPU's loss: {self.way}")
        arms = [dataclasses.replace(i, how=self.way) for i in items if "arm" in i.task.unit]
        more = [arms[i % len(arms)] for i in range(max(self.jobs, len(arms)))]
        epochs = self.experiments["language-paper"].scales[self.scale]["settings"]["epochs"]
        for item, entry in self.work_off(more, self.jobs):
            arm, seconds = item.task.unit["arm"], entry["numbers"]["epoch_s"]
            known = self.seconds.get(f"epochs, {arm}", 0.0)
            self.seconds[f"epochs, {arm}"] = max(known, BEGIN + epochs * seconds)
        for arm in dict.fromkeys(TABLE_1.values()):
            if f"epochs, {arm}" in self.seconds:
                known = self.seconds[f"epochs, {arm}"]
                self.say(f"{epochs} epochs of {arm}, {self.jobs} at a time: about {known:.0f} s")

    def loss(self, item: Item) -> float:
        """The first losses on the CPU, of a profiled way's unit; NaN if they cannot be had."""
        config = {**item.task.config, "repeats": 1}
        task = item.task._replace(unit={"way": "float32"}, config=config, device="cpu")
        for _, answer in workers.answers(attempt, [Item("cpu", task)], 1, self.end):
            if isinstance(answer, dict) and "loss" in answer["numbers"]:
                return answer["numbers"]["loss"]
            self.say(f"no loss of the CPU: {answer}")
        return math.nan

    def table1(self, folder: Path) -> list[Item]:
        """The language models of Tables 1 and 5, all first seeds before the second ones."""
        items = self.items("language-paper", folder)
        order = list(TABLE_1)
        if self.scale == "full":
            items = [item for item in items if item.task.unit["arm"] in TABLE_1]

        def place(item: Item) -> tuple[int, int]:
            arm = item.task.unit["arm"]
            return item.task.unit["seed"], order.index(arm) if arm in order else len(order)

        return [
            dataclasses.replace(i, kind=f"epochs, {TABLE_1.get(arm, arm)}", how=self.way)
            for i in sorted(items, key=place)
            for arm in [i.task.unit["arm"]]
        ]

    def table2(self, folder: Path) -> list[Item]:
        """The fine-tuning runs of Table 2, seed by seed, after the head that all begin from."""
        first = [dataclasses.replace(i, kind="head") for i in self.items("masked-pretrain", folder)]
        rest = [
            dataclasses.replace(
                item, kind=f"{name}, {item.task.unit['arm']}", after="head" * bool(first)
            )
            for name in TABLE_2
            for item in self.items(name, folder)
        ]
        return first + sorted(rest, key=lambda item: item.task.unit["seed"])

    def command_line(self, what: str, words: list[str], seconds: float, *needs: str) -> None:
        """Run a command of the project, and say its last line."""
        lacking = [name for name in needs if importlib.util.find_spec(name) is None]
        if lacking or not (ROOT / "tests").is_dir():
            self.say(f"left out: {what}, without {' and '.join(lacking) or 'a checkout'}")
            return
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        kind = {"IMM_DEVICE": self.device, "PYTHONPATH": path}
        try:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=ROOT,
                env={**os.environ, **kind},
                capture_output=True,
                text=True,
                timeout=max(1.0, min(seconds, self.stop - time.monotonic())),
            )
        except subprocess.TimeoutExpired:
            self.say(f"{what}: stopped after {seconds:.0f} s")
            return
        lines = (done.stdout + done.stderr).strip().splitlines() or ["nothing said"]
        self.say(f"{what}: {lines[-1]}" + ("" if done.returncode == 0 else " (failed)"))

    def tests(self) -> None:
        """The core's tests on the device."""
        found = [str(p) for t in TESTED if (p := ROOT / "tests" / f"test_{t}.py").is_file()]
        found = found if self.scale == "full" else found[-1:]
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *found]
        self.command_line(
            "tests of the core", words, 0.2 * (self.end - self.start), "pytest", "hypothesis"
        )

    def chapters(self) -> None:
        """Every chapter on the device, one after another."""
        found = sorted((ROOT / "book").glob("[0-9]*.ipynb"))
        for path in found if self.scale == "full" else found[:1]:
            left = self.end - time.monotonic()
            if left < UNKNOWN / 2:
                self.say(f"no time left from chapter {path.stem} on")
                return
            words = [str(ROOT / "tests" / "tools" / "rerun.py"), "--dry", path.stem]
            self.command_line(
                f"chapter {path.stem}", words, left, "nbclient", "nbformat", "matplotlib"
            )


def run(
    minutes: float,
    jobs: int = 4,
    device: str = "cuda",
    where: Path | None = None,
    scale: str = "full",
    stages: tuple[str, ...] = STAGES,
    command: str = "",
) -> None:
    """Work off the stages, in their order, in so many minutes.

    Raises:
        ValueError: an unknown stage, bad numbers, a device that is not there, or a stored result of
            another configuration.
    """
    options.each("stages", stages, STAGES)
    kit = Kit(minutes, jobs, device, where or results.folder(), scale, command)
    with kit.opened() as folder:
        if "tests" in stages:
            kit.tests()
        if "profile" in stages:
            kit.profile(folder)
        items = kit.table1(folder) if "table1" in stages else []
        items += kit.table2(folder) if "table2" in stages else []
        kit.work_off(items, jobs)
        if "chapters" in stages:
            kit.chapters()
        kit.say("done")
