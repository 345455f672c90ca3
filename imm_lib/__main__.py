"""The command line: python -m imm_lib list | run | show | bench."""

import argparse
import contextlib
import json
import shlex
import sys
from pathlib import Path

from imm_lib import data, experiments, results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imm_lib", description="Run and show the book's experiments."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the experiments")
    run = commands.add_parser("run", help="run experiments and write their results")
    run.add_argument("name", nargs="?", help="an experiment; see list")
    run.add_argument("--all", action="store_true", help="every experiment, one after another")
    show = commands.add_parser("show", help="print the table of a stored result")
    show.add_argument("name")
    bench = commands.add_parser(
        "bench", help="measure speed and memory; runs every bench-... experiment"
    )
    for command in (run, show):
        command.add_argument(
            "--scale", default="full", help="full (default) or ci, a quick look stored as NAME-ci"
        )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value in the configuration, a word or JSON (model=bert-base-uncased); needs --out",
    )
    run.add_argument(
        "--jobs", type=int, default=1, help="units to run at a time, each in its own process"
    )
    for command in (run, bench):
        command.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument(
            "--resume", action="store_true", help="keep what an interrupted run has finished"
        )
    for command in (run, show, bench):
        command.add_argument(
            "--out", type=Path, help="folder of the results; by default book/results"
        )
    return parser


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _names(args: argparse.Namespace) -> list[str]:
    if args.command == "bench":
        return [name for name in experiments.registry() if name.startswith("bench-")]
    if args.all == (args.name is not None):
        raise ValueError("name one experiment, or give --all")
    if not args.all:
        return [args.name]
    left_out = [e.name for e in experiments.registry().values() if e.gpu and args.scale == "full"]
    if args.device != "cpu" or not left_out:
        return list(experiments.registry())
    print(
        f"left out without a GPU: {', '.join(left_out)}; name one, or give --device cuda",
        file=sys.stderr,
    )
    return [name for name in experiments.registry() if name not in left_out]


def _changes(args: argparse.Namespace) -> dict:
    """What --set asks for. A file in book/results is of the declared configuration, so another
    folder is needed.
    """
    if args.set and (
        args.all or args.out is None or args.out.resolve() == results.folder().resolve()
    ):
        raise ValueError(
            "--set makes another experiment: name one, and give --out FOLDER, another one than the results'"
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
    for name in ("--out", "--jobs"):
        parser.add_argument(name)
    parser.add_argument("--resume", action="store_true")
    return parser.parse_known_args(words)[1]


def _left(remaining: list[experiments.Experiment], scale: str) -> str:
    """How long the stored runs of these experiments took; nothing where none is stored."""
    seconds = []
    for experiment in remaining:
        with contextlib.suppress(results.ResultError):
            seconds.append(results.load(experiments.file_name(experiment, scale))["wall_s"])
    return (
        f", the {len(seconds)} with a stored run took {sum(seconds) / 60:.0f} min"
        if seconds
        else ""
    )


def _act(args: argparse.Namespace, words: list[str]) -> None:
    if args.command == "list":
        _print_table([[e.name, e.description] for e in experiments.registry().values()])
    elif args.command == "show":
        experiment = experiments.find(args.name)
        experiments.check_scale(experiment, args.scale)
        _print_table(
            experiment.table(results.load(experiments.file_name(experiment, args.scale), args.out))
        )
    else:
        command = shlex.join(["python", "-m", "imm_lib", *_lasting(words)])
        chosen, scale = (
            [experiments.find(name) for name in _names(args)],
            getattr(args, "scale", "full"),
        )
        jobs = getattr(args, "jobs", 1)
        if args.command == "run" and (changes := _changes(args)):
            chosen = [experiments.adjusted(chosen[0], scale, changes)]
        for i, experiment in enumerate(chosen):
            if len(chosen) > 1:
                left = _left(chosen[i:], scale)
                print(f"[{i + 1}/{len(chosen)}{left}] {experiment.name}", file=sys.stderr)
            file = experiments.run(
                experiment, scale, args.seed, args.device, args.resume, args.out, command, jobs
            )
            _print_table(experiment.table(results.load(file.stem, file.parent)))
            print(f"written: {file.name}")
        for experiment in chosen:
            experiments.forget(experiment, scale, args.out)


def main(words: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 2 for a mistake in the call, 1 for a failure,
    130 when stopped.
    """
    words = sys.argv[1:] if words is None else words
    args = _parser().parse_args(words)
    try:
        _act(args, words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (data.DataError, results.ResultError, ImportError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = shlex.join(
            ["python", "-m", "imm_lib", *words, *([] if "--resume" in words else ["--resume"])]
        )
        print(f"\nstopped; to go on: {again}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
