"""The command line: python -m imm_lib list | run | show | bench | paper."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, cast

from imm_lib import experiments, results
from imm_lib.experiments import arguments
from imm_lib.experiments.table import aligned

if TYPE_CHECKING:
    from imm_lib.experiments import Experiment


class Terminated(KeyboardInterrupt):
    """The system asked the process to end."""


class _Lasting:
    """stderr whose loss ends no run: a disk that is full, a terminal or a reader that is gone."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """What is printed here is lost where nobody reads any more."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # as Python's documentation has it: what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def _print_table(rows: list[list[str]]) -> None:
    with _said():
        print("\n".join(aligned(rows)))


def _table(experiment: Experiment, result: dict) -> list[list[str]]:
    """The rows of a result; raises ResultError where it has too few runs for them."""
    try:
        return experiment.table(result)
    except (KeyError, IndexError, StopIteration, ValueError) as error:
        name = experiments.file_name(experiment, result["scale"])
        raise results.ResultError(
            f"{name}.json: its table cannot be made: {type(error).__name__}: {error}"
        ) from error


def _names(args: argparse.Namespace) -> list[str]:
    if args.command == "bench":
        return [name for name in experiments.names() if name.startswith("bench-")]
    if args.all == (args.name is not None):
        raise ValueError("name one experiment, or give --all")
    if not args.all:
        return [args.name]
    known, kind = experiments.registry().values(), args.device.partition(":")[0]
    big = {e.name for e in known if e.gpu and args.scale == "full" and kind == "cpu"}
    elsewhere = {e.name for e in known if kind in ("cpu", "cuda") and kind not in e.devices}
    for left_out, why in ((big, "without a GPU"), (elsewhere, f"as they do not run on {kind}")):
        if left_out:
            words = ", ".join(name for name in experiments.names() if name in left_out)
            print(f"left out {why}: {words}", file=sys.stderr)
    return [e.name for e in known if e.name not in big | elsewhere]


def _left(remaining: list[Experiment], scale: str) -> str:
    """How long the stored runs of these experiments took; nothing where none is stored."""
    seconds = []
    for experiment in remaining:
        with contextlib.suppress(results.ResultError):
            seconds.append(results.load(experiments.file_name(experiment, scale))["wall_s"])
    if not seconds:
        return ""
    return f", the {len(seconds)} with a stored run took {sum(seconds) / 60:.0f} min"


def _show(args: argparse.Namespace) -> None:
    name, scale = args.name, args.scale
    if name not in experiments.names() and scale is None:
        base, _, last = name.rpartition("-")
        if base in experiments.names():  # NAME-ci, as the file is called
            name, scale = base, last
    experiment = experiments.find(name)
    scale = scale or "full"
    experiments.check_scale(experiment, scale)
    result = results.load(experiments.file_name(experiment, scale), args.out)
    if args.columns is None:
        if args.by or args.against or args.where:
            raise ValueError("--by, --against and --where need --columns")
        _print_table(_table(experiment, result))
        return
    from imm_lib.experiments import reading

    try:
        with _said():
            reading.show(result, args.columns, args.by, args.against, args.where)
        for column in args.columns:
            if said := reading.lacking(result, column, args.where):
                print(said, file=sys.stderr)
    except KeyError as error:
        raise ValueError(f"--where: no {error} in {name}'s numbers") from None


def _executor(address: str | None, jobs: int) -> contextlib.AbstractContextManager:
    """Where units run, if not here."""
    if address is None:
        return contextlib.nullcontext()
    if jobs != 1:
        raise ValueError("--jobs is for this machine and --cluster for others: give one of them")
    from imm_lib.experiments import cluster

    return cluster.executor(address)


def _run(args: argparse.Namespace, words: list[str]) -> None:
    command = shlex.join(["python", "-m", "imm_lib", *arguments.lasting(words)])
    chosen = [experiments.find(name) for name in _names(args)]
    scale, jobs = getattr(args, "scale", "full"), getattr(args, "jobs", 1)
    if args.command == "run" and (changes := arguments.changes(args)):
        chosen = [experiments.adjusted(chosen[0], scale, changes)]
    with _executor(getattr(args, "cluster", None), jobs) as executor:
        for i, experiment in enumerate(chosen):
            if len(chosen) > 1:
                left = _left(chosen[i:], scale)
                print(f"[{i + 1}/{len(chosen)}{left}] {experiment.name}", file=sys.stderr)
            file = experiments.run(
                experiment,
                scale,
                args.seed,
                args.device,
                args.resume,
                args.out,
                command,
                jobs,
                anew=args.anew,
                missing=getattr(args, "missing", False),
                executor=executor,
            )
            with _said():
                print(f"written: {file.name}")
            _print_table(_table(experiment, results.load(file.stem, file.parent)))
    for experiment in chosen:
        experiments.forget(experiment, scale, args.out)


def _paper(args: argparse.Namespace, words: list[str]) -> None:
    from imm_lib.experiments import kit

    stages = tuple(args.only.split(",")) if args.only else kit.STAGES
    command = shlex.join(["python", "-m", "imm_lib", *arguments.lasting(words)])
    kit.run(args.minutes, args.jobs, args.device, args.out, args.scale, stages, command)


def _act(args: argparse.Namespace, words: list[str]) -> None:
    if args.command == "list":
        _print_table([[name, line] for name, line in experiments.descriptions().items()])
    elif args.command == "show":
        _show(args)
    elif args.command == "paper":
        _paper(args, words)
    else:
        _run(args, words)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, and either says so at once."""

    def end(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping\n")  # print may be at work itself
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    try:
        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, to which signals come
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(words: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 2 for a mistake in the call, 1 for a failure,
    130 when stopped by Ctrl-C and 143 when told to end.
    """
    words = sys.argv[1:] if words is None else words
    # one that was closed, before a file of ours takes its number
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # a terminal that has no λ
    args = arguments.parser().parse_args(words)
    with contextlib.redirect_stderr(cast(TextIO, _Lasting(sys.stderr))):
        return _outcome(args, words)


def _outcome(args: argparse.Namespace, words: list[str]) -> int:
    """Do what is asked for; returns the exit code."""
    try:
        with _ended_by_signals():
            _act(args, words)
    except results.ResultError as error:
        return _failed(f"{error}; looked in {error.folder}" if error.folder else error)
    except (ImportError, MemoryError, UnicodeError, RuntimeError) as error:
        return _failed(error)
    except OSError as error:
        return _failed(f"{error.filename or 'a file'}: {error.strerror or error}")
    except ValueError as error:
        return _failed(error, 2)
    except KeyboardInterrupt as error:
        resumes = args.command == "paper" or "--resume" in words
        again = shlex.join(["python", "-m", "imm_lib", *words, *([] if resumes else ["--resume"])])
        print(f"stopped; to go on: {again}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    return 0


def _failed(error: object, code: int = 1) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
