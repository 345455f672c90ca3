"""The command line: python -m imm_lib list | run | show | bench | paper."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from imm_lib import __version__, experiments, results
from imm_lib.experiments.table import aligned

if TYPE_CHECKING:
    from imm_lib.experiments import Experiment

STORED = "The book's own results are in book/results of its repository; the package has none."


class Terminated(KeyboardInterrupt):
    """The system asked the process to end."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imm_lib", description="Run and show the book's experiments.", epilog=STORED
    )
    parser.add_argument("--version", action="version", version=f"imm_lib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the experiments")
    run = commands.add_parser("run", help="run experiments and write their results")
    run.add_argument("name", nargs="?", help="an experiment; see list")
    run.add_argument("--all", action="store_true", help="every experiment, one after another")
    show = commands.add_parser("show", help="print the table of a stored result", epilog=STORED)
    show.add_argument("name", help="an experiment, or the name of a result: NAME-ci")
    bench = commands.add_parser(
        "bench", help="measure speed and memory; runs every bench-... experiment"
    )
    paper = commands.add_parser(
        "paper", help="what minutes on a GPU are worth most, each unit stored when it is done"
    )
    paper.add_argument("--minutes", type=float, required=True, help="until all must have ended")
    paper.add_argument("--jobs", type=int, default=4, help="units at a time (default 4)")
    paper.add_argument("--device", default=os.environ.get("IMM_DEVICE") or "cuda")
    paper.add_argument("--scale", default="full", help="full (default), or ci for a dry look")
    paper.add_argument(
        "--only", help="some of tests,profile,table1,table2,chapters; by default all of them"
    )
    run.add_argument(
        "--scale", default="full", help="full (default) or ci, a quick look stored as NAME-ci"
    )
    show.add_argument("--scale", help="full (default) or ci")
    show.add_argument(
        "--columns",
        type=_words,
        help="means of these instead, A,B, and 95 % intervals".replace("%", "%%"),
    )
    show.add_argument("--by", type=_words, default=[], help="fields that tell cases apart, A,B")
    show.add_argument("--against", help="a case, by the last of --by: changes from it, paired")
    show.add_argument("--where", default="", help='where they lie: "rules/{rule}"')
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value in the configuration, a word or JSON; needs --out",
    )
    run.add_argument(
        "--jobs", type=int, default=1, help="units to run at a time, each in its own process"
    )
    run.add_argument(
        "--cluster", metavar="ADDRESS", help="run units on this cluster of dask.distributed instead"
    )
    run.add_argument(
        "--missing",
        action="store_true",
        help="keep the units of the stored result, and run those that it lacks",
    )
    for command in (run, bench):
        command.add_argument(
            "--device",
            default=os.environ.get("IMM_DEVICE") or "cpu",
            help="cpu, cuda, cuda:1, ...; by default %(default)s (IMM_DEVICE, else cpu)",
        )
        command.add_argument("--seed", type=int, default=0)
        either = command.add_mutually_exclusive_group()
        either.add_argument(
            "--resume", action="store_true", help="keep what an interrupted run has finished"
        )
        either.add_argument(
            "--anew", action="store_true", help="discard what an interrupted run has finished"
        )
    for command in (run, show, bench, paper):
        command.add_argument("--out", type=_folder, help=f"folder of the results; {_default()}")
    return parser


def _words(text: str) -> list[str]:
    return text.split(",")


def _folder(word: str) -> Path:
    return Path(word).expanduser()


def _default() -> str:
    """Where results lie by default, for the help."""
    try:
        return f"by default {results.folder()} (IMM_RESULTS changes it)".replace("%", "%%")
    except ValueError as error:
        return f"no default: {error}".replace("%", "%%")


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """What is printed here is lost where nobody reads any more."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # as Python's documentation has it: what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


def _changes(args: argparse.Namespace) -> dict:
    """What --set asks for. A file in book/results is of the declared configuration, so another
    folder is needed.
    """
    if args.set and (
        args.all or args.out is None or args.out.resolve() == results.folder().resolve()
    ):
        raise ValueError(
            "--set makes another experiment: name one, and give --out FOLDER, another one than "
            "the results'"
        )
    changes = {}
    for word in args.set:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--set must be NAME=VALUE, got {word!r}")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


def _lasting(words: list[str]) -> list[str]:
    """The words that say what was run: not where it was written, nor in how many processes and
    sittings.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--out", "--jobs", "--cluster"):
        parser.add_argument(name)
    for name in ("--resume", "--anew", "--missing"):
        parser.add_argument(name, action="store_true")
    return parser.parse_known_args(words)[1]


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
    command = shlex.join(["python", "-m", "imm_lib", *_lasting(words)])
    chosen = [experiments.find(name) for name in _names(args)]
    scale, jobs = getattr(args, "scale", "full"), getattr(args, "jobs", 1)
    if args.command == "run" and (changes := _changes(args)):
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
    command = shlex.join(["python", "-m", "imm_lib", *_lasting(words)])
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
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # a terminal that has no λ
    args = _parser().parse_args(words)
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
