"""Kill commands with SIGKILL at random moments and count what is lost: ``make kills``.

Four commands are killed: a run of an experiment, the re-execution of chapters, the making of pages
and a download, from a server that is started here. After every kill, what was finished before must
be there unchanged, and each file must be the old one or the new one. Then the command is started
again. Half of the kills come at any moment; the others as soon as a file appears, while it is
written. The counts go to ``book/results/kills.json``.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import nbformat
import rerun
import torch
from loopback import serving

from imm_lib import data, results
from imm_lib.__main__ import main as imm

EXPERIMENT = "side-divergences"
SMALL = ("runs=4", "n=50", "lam=[1.0]", 'm=["inf"]')  # 18 units of hundredths of a second
COUNTS = ("kills", "while_writing", "finished", "lost", "half_written", "left")
Files = dict[str, bytes | None]


@dataclass
class Work:
    """A command to kill.

    Attributes:
        prepare: a folder -> nothing; makes it what the command finds.
        act: a folder -> nothing; the command.
        finished: a folder -> what is finished in it, by name; raises HalfWritten.
        whole: a folder -> whether all is finished.
        expected: names of the files that are then there, and of no others.
        span: seconds that it takes when it is left alone.
    """

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    finished: Callable[[Path], dict]
    whole: Callable[[Path], bool]
    expected: set[str]
    span: float = 0.0


class HalfWritten(Exception):
    """A file is neither the old one nor the new one."""


@dataclass
class Tally:
    """Counts of one command; ``finished`` pieces were there before some kill."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    said: list[str] = field(default_factory=list)
    attempts: int = 0

    def add(self, name: str, what: object, count: int = 1) -> None:
        """Count something that should not be, and say what."""
        self.counts[name] += count
        self.said += [f"{name}: {what}"] * bool(count)


# the commands


def run_of_an_experiment() -> Work:
    """Units are finished one by one, and gone on with after each kill."""
    name = f"{EXPERIMENT}-ci"
    small = [word for change in SMALL for word in ("--set", change)]
    command = ["run", EXPERIMENT, "--scale", "ci", *small, "--resume", "--out"]

    def finished(folder: Path) -> dict:
        for file in (folder / f"{name}.json", folder / ".partial" / f"{name}.json"):
            with suppress(FileNotFoundError):
                try:
                    units = json.loads(file.read_bytes())["units"]
                except (ValueError, KeyError) as error:
                    raise HalfWritten(f"{file.name}: {error}") from error
                # with its seconds, which tell a unit that was kept from one that was done again
                parts = ("numbers", "wall_s")
                return {json.dumps(u["unit"]): [u[part] for part in parts] for u in units}
        return {}

    def act(folder: Path) -> None:
        if code := imm([*command, str(folder)]):
            raise RuntimeError(f"the run ended with {code}")

    def whole(folder: Path) -> bool:
        return (folder / f"{name}.json").is_file()

    return Work(lambda folder: None, act, finished, whole, {f"{name}.json"})


def of_files(old: Files, new: Files, act: Callable[[Path], None]) -> Work:
    """A command that replaces each file in one step."""

    def prepare(folder: Path) -> None:
        for name, content in old.items():
            if content is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)

    def found(folder: Path) -> Files:
        paths = {name: folder / name for name in new}
        return {name: p.read_bytes() if p.is_file() else None for name, p in paths.items()}

    def finished(folder: Path) -> dict:
        there = found(folder)
        if neither := [name for name in new if there[name] not in (old[name], new[name])]:
            raise HalfWritten(f"{', '.join(neither)}: neither old nor new")
        return {name: content for name, content in there.items() if content == new[name]}

    def whole(folder: Path) -> bool:
        return found(folder) == new

    return Work(prepare, act, finished, whole, set(new))


def from_an_act(old: Files, act: Callable[[Path], None]) -> Work:
    """The same, where what the command writes is known from doing it once."""
    with tempfile.TemporaryDirectory() as name:
        folder, work = Path(name), of_files(old, old, act)
        work.prepare(folder)
        span = _child(act, folder).join()
        new: Files = {name: (folder / name).read_bytes() for name in old}
        return replace(of_files(old, new, act), span=span)


def rerun_of_chapters() -> Work:
    """A small chapter, whose output is out of date."""
    cell = nbformat.v4.new_code_cell("print(6 * 7)", id="cell", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="41\n")]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    old: Files = {"01-a.ipynb": nbformat.writes(notebook).encode()}

    def act(folder: Path) -> None:
        os.environ["JUPYTER_RUNTIME_DIR"] = tempfile.gettempdir()
        rerun.BOOK = folder
        rerun.main()

    return from_an_act(old, act)


def pages() -> Work:
    """The generated pages, from the stored results."""
    sys.path.insert(0, str(rerun.BOOK / "_ext"))
    import pages as generated

    stored = results.folder()

    def act(folder: Path) -> None:
        (folder / "results").mkdir(exist_ok=True)
        os.environ["IMM_RESULTS"] = str(stored)
        for name, page in generated.PAGES.items():
            results.write_bytes(folder / name, page().encode())

    return from_an_act(dict.fromkeys(generated.PAGES, b"old\n"), act)


@contextmanager
def download() -> Iterator[Work]:
    """A corpus in three files, which arrive slowly."""
    draw = random.Random(0)
    texts = {
        split: "".join(f"{draw.randrange(20)} " * 9 + "\n" for _ in range(5000)).encode()
        for split in data.SPLITS
    }
    new: Files = {f"tiny/{split}.txt": text for split, text in texts.items()}
    with serving({f"/{split}": text for split, text in texts.items()}, seconds=0.1) as address:
        data.SOURCES["tiny"] = data.Source(
            files={split: f"{split}.txt" for split in texts},
            sha256={split: hashlib.sha256(text).hexdigest() for split, text in texts.items()},
            words=dict.fromkeys(texts, 45000),
            url=address + "/{split}",
        )

        def act(folder: Path) -> None:
            os.environ.pop("IMM_DATA", None)
            os.environ |= {"IMM_CACHE": str(folder), "no_proxy": "127.0.0.1"}
            data.load("tiny")

        work = of_files(dict.fromkeys(new), new, act)
        yield work
        del data.SOURCES["tiny"]


# the killing


@dataclass
class Child:
    """A process that acts in a folder."""

    process: int
    start: float = field(default_factory=time.perf_counter)

    def ended(self) -> bool:
        """Whether it has ended by itself; raises RuntimeError where it failed."""
        found, status = os.waitpid(self.process, os.WNOHANG)
        if found and status:
            raise RuntimeError(f"a command failed, with status {status}")
        return bool(found)

    def join(self) -> float:
        """Wait for its end, and say how many seconds it took; raises RuntimeError."""
        while not self.ended():
            time.sleep(0.005)
        return time.perf_counter() - self.start

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


def _child(act: Callable[[Path], None], folder: Path) -> Child:
    """Everything is imported already, so that the kills fall into the work."""
    sys.stdout.flush()
    if process := os.fork():
        return Child(process)
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        silent = os.dup(2)
        os.dup2(1, 2)
        act(folder)
    except BaseException:
        os.dup2(silent, 2)
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _names(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def _unfinished(folder: Path) -> set[Path]:
    """Files that are being written, or were when their writer was killed."""
    return {name for name in _names(folder) if name.name.startswith(".")}


def killed(work: Work, folder: Path, draw: random.Random, aimed: bool) -> bool:
    """Start the command and kill it; False where it ended before.

    Args:
        work: the command.
        folder: where it acts.
        draw: of the moment.
        aimed: kill at the first unfinished file that appears after a random moment.
    """
    there = _unfinished(folder)
    child = _child(work.act, folder)
    moment = child.start + draw.uniform(0, work.span)
    while time.perf_counter() < moment:
        if child.ended():
            return False
        time.sleep(0.001)
    while aimed and not _unfinished(folder) - there:
        if child.ended():
            return False
        time.sleep(0.0002)
    child.kill()
    return True


def count(work: Work, kills: int, seed: int) -> Tally:
    """Kill a command so many times, half of them while it writes."""
    draw, tally = random.Random(seed), Tally()
    if not work.span:
        with tempfile.TemporaryDirectory() as name:
            work.prepare(Path(name))
            work.span = _child(work.act, Path(name)).join()
    while tally.counts["kills"] < kills:
        with tempfile.TemporaryDirectory() as name:
            _round(work, Path(name), kills, draw, tally)
    return tally


def _round(work: Work, folder: Path, kills: int, draw: random.Random, tally: Tally) -> None:
    """Kill the command until it has finished, or often enough and then let it finish."""
    before: dict = {}
    work.prepare(folder)
    while tally.counts["kills"] < kills and not work.whole(folder):
        there = _unfinished(folder)
        tally.attempts += 1
        if not killed(work, folder, draw, aimed=bool(tally.attempts % 2)):
            break
        tally.counts["kills"] += 1
        tally.counts["while_writing"] += bool(_unfinished(folder) - there)
        before = _compared(work, folder, before, tally)
    if not work.whole(folder):
        _child(work.act, folder).join()
    _compared(work, folder, before, tally)
    if not work.whole(folder):
        tally.add("lost", "not whole after a start that was not killed")
    if {str(name) for name in _names(folder)} - work.expected:
        _child(work.act, folder).join()  # what the last kill left is the next start's to remove
    left = {str(name) for name in _names(folder)} - work.expected
    tally.add("left", sorted(left), len(left))


def _compared(work: Work, folder: Path, before: dict, tally: Tally) -> dict:
    """What is finished now, and a complaint where it is less than before."""
    try:
        after = work.finished(folder)
    except HalfWritten as error:
        tally.add("half_written", error)
        return before
    lost = [name for name in before if after.get(name) != before[name]]
    tally.add("lost", lost, len(lost))
    tally.counts["finished"] += len(after.keys() - before.keys())
    return after


def main(kills: int, seed: int = 0, keep: bool = True) -> str | None:
    """Kill each command, print the counts, and store them; returns an error sentence, or None."""
    config, units, said = {"kills": kills}, [], []
    with ExitStack() as stack:
        works = {
            "run": run_of_an_experiment(),
            "rerun": rerun_of_chapters(),
            "pages": pages(),
            "download": stack.enter_context(download()),
        }
        print("  ".join(["command ", *COUNTS]))
        for name, work in works.items():
            start = time.perf_counter()
            tally = count(work, kills, seed)
            numbers = tally.counts
            wall = round(time.perf_counter() - start, 3)
            units.append({"unit": {"command": name}, "numbers": numbers, "wall_s": wall})
            cells = [f"{numbers[column]:{len(column)}d}" for column in COUNTS]
            print("  ".join([f"{name:8}", *cells]), flush=True)
            said += [f"{name}: {line}" for line in tally.said]
    if keep:
        results.save(
            {
                **{"schema": results.SCHEMA_VERSION, "experiment": "kills", "scale": "full"},
                **{"config": config, "seed": seed, "units": units},
                "wall_s": round(sum(unit["wall_s"] for unit in units), 3),
                "command": f"python tests/tools/kills.py --kills {kills} --seed {seed}",
                "commit": results.commit(),
                **results.provenance(torch.device("cpu")),
            },
            "kills",
        )
    return "\n".join(said) or None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill commands, and count what is lost.")
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-keep", dest="keep", action="store_false", help="store nothing")
    given = parser.parse_args()
    sys.exit(main(given.kills, given.seed, given.keep))
