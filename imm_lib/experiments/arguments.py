"""The words of the command line, and what they ask for."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import NoReturn

from imm_lib import __version__, results
from imm_lib.experiments.catalogue import suggestion

STORED = "The book's own results are in book/results of its repository; the package has none."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += suggestion(found[1], re.findall(r"\w+", found[2]))
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """Of list, run, show, bench and paper."""
    parser = _Parser(
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
        "--columns", type=_words, metavar="A,B", help="these numbers' means and 95 %% intervals"
    )
    show.add_argument("--by", type=_words, default=[], metavar="A,B", help="what tells cases apart")
    show.add_argument("--against", metavar="CASE", help="changes from this one, paired by run")
    show.add_argument("--where", default="", metavar="PATH", help='of the rows: "rules/{rule}"')
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
    try:
        return Path(word).expanduser()
    except RuntimeError:  # an unknown user, or no HOME and no entry in the user database
        raise argparse.ArgumentTypeError(f"the ~ of {word!r} stands for no home folder") from None


def _default() -> str:
    """Where results lie by default, for the help."""
    try:
        return f"by default {results.folder()} (IMM_RESULTS changes it)".replace("%", "%%")
    except ValueError as error:
        return f"no default: {error}".replace("%", "%%")


def changes(args: argparse.Namespace) -> dict:
    """What --set asks for. A file in book/results is of the declared configuration, so another
    folder is needed.
    """
    if args.set and args.all:
        raise ValueError("--set makes another experiment: name one, without --all")
    if args.set and (args.out is None or args.out.resolve() == results.folder().resolve()):
        raise ValueError("--set needs --out FOLDER, another one than the results'")
    found = {}
    for word in args.set:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--set must be NAME=VALUE, got {word!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def lasting(words: list[str]) -> list[str]:
    """The words that say what was run: not where it was written, nor in how many processes and
    sittings.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--out", "--jobs", "--cluster"):
        parser.add_argument(name)
    for name in ("--resume", "--anew", "--missing"):
        parser.add_argument(name, action="store_true")
    return parser.parse_known_args(words)[1]
