"""Four GLUE tasks and their tab-separated files."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from imm_lib import files, folders, results
from imm_lib.experiments.options import one_of

SPLITS = ("train", "dev")


class Example(NamedTuple):
    """A sentence or a pair of them, and a label."""

    first: str
    second: str | None
    label: int


@dataclass(frozen=True)
class Task:
    """How a task's files are laid out.

    Attributes:
        folder: of its files, below ``glue/``.
        columns: a pattern for each column's cells.
        sentences, label: which of the columns hold them.
        labels: names of the labels, in order.
        score: "mcc", "f1" or "accuracy", what GLUE reports.
        header: the columns' names, which the first line must then hold.
        halves: the dev file's questions in turn are train and dev, where the training file is not
        to be had.
        rows: number of examples in a split's file.
        archive: address of a zip file that holds the splits, where there is one.
        sha256: of these splits, as far as they are known.
    """

    folder: str
    columns: tuple[str, ...]
    sentences: tuple[int, ...]
    label: int
    labels: tuple[str, ...]
    score: str
    header: tuple[str, ...] = ()
    halves: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    archive: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)


_ANY, _NUMBER, _SENTENCE = r".*", r"[0-9]+", r".*\S.*"
_QNLI = Task(
    "QNLI",
    (_NUMBER, _SENTENCE, _SENTENCE, _ANY),
    (1, 2),
    3,
    ("entailment", "not_entailment"),
    "accuracy",
    header=("index", "question", "sentence", "label"),
    rows={"train": 104_743, "dev": 5463},
    archive="https://dl.fbaipublicfiles.com/glue/data/QNLIv2.zip",
    sha256={"dev": "ac19409dcb04631eaaa094bdebdcf621086bc352503dfb6a1a648b614986f4fd"},
)
TASKS = {
    "CoLA": Task(
        "CoLA",
        # the source, the label, the linguists' marks (a star, question marks), the sentence
        (r"\S+", _ANY, r"[*? ]*", _SENTENCE),
        (3,),
        1,
        ("0", "1"),
        "mcc",
        rows={"train": 8551, "dev": 1043},
        archive="https://dl.fbaipublicfiles.com/glue/data/CoLA.zip",
        sha256={
            "train": "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624",
            "dev": "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd",
        },
    ),
    "MRPC": Task(
        "MRPC",
        (_ANY, _NUMBER, _NUMBER, _SENTENCE, _SENTENCE),
        (3, 4),
        0,
        ("0", "1"),
        "f1",
        header=("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        rows={"train": 3668, "dev": 408},
    ),
    "RTE": replace(
        _QNLI,
        folder="RTE",
        header=("index", "sentence1", "sentence2", "label"),
        rows={"train": 2490, "dev": 277},
        archive="https://dl.fbaipublicfiles.com/glue/data/RTE.zip",
        sha256={
            "train": "41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c",
            "dev": "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb",
        },
    ),
    "QNLI": _QNLI,
    "QNLI-small": replace(_QNLI, halves=True),
}


def named(name: str) -> Task:
    """The task of that name; raises ValueError for an unknown one."""
    one_of("task", name, TASKS)
    return TASKS[name]


def available(name: str, split: str = "train") -> bool:
    """Whether a split's file lies on this machine."""
    return files.present(_file(named(name), split))


def _file(task: Task, split: str) -> str:
    return f"glue/{task.folder}/{'dev' if task.halves else split}.tsv"


def _download(name: str, split: str) -> Path:
    """The file of a split, in the cache, where all splits of a task arrive or none; raises
    DataError.

    They are verified but for QNLI's training split, whose checksum is not known.
    """
    task, wanted = TASKS[name], _file(TASKS[name], split)
    advice = f"set IMM_DATA to a folder that holds {wanted}"
    if task.archive is None:
        raise files.DataError(
            f"{name} has no public archive: rebuild its files from Microsoft's paraphrase corpus, "
            f"and {advice}"
        )
    path = folders.cache() / wanted
    with files.keeping(path.parent, name):
        what = f"{name} (archive)"
        archive = files.download(what, task.archive, None, advice)
        members = [f"{task.folder}/{part}.tsv" for part in SPLITS]
        found = dict(zip(SPLITS, files.unpack(archive, members, what, advice), strict=True))
        for part, known in task.sha256.items():
            files.verify(found[part], known, f"{name} ({part})", advice)
        for part, content in found.items():
            results.write_bytes(path.parent / f"{part}.tsv", content)
    return path


def load(name: str, split: str) -> list[Example]:
    """The examples of a split, from ``IMM_DATA``, else from the cache, else downloaded with a
    progress bar.

    Args:
        name: of TASKS.
        split: "train" or "dev".

    Raises:
        ValueError: an unknown task or split.
        DataError: a file that cannot be had or read, has a wrong checksum or another number of rows
            than the task; or, with its line, another header, a row with too few or too many
            columns, an empty sentence, a label that the task does not have, or a cell that does not
            belong into its column.
    """
    task = named(name)
    one_of("split", split, SPLITS)
    path = files.find(_file(task, split)) or _download(name, split)
    examples = read(path, task)
    return _halves(examples)[SPLITS.index(split)] if task.halves else examples


def _halves(examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """Every other question with all of its sentences; from the second half without sentences that
    the first has.
    """
    number = {question: i for i, question in enumerate(dict.fromkeys(e.first for e in examples))}
    train = [e for e in examples if number[e.first] % 2 == 0]
    known = {e.second for e in train}
    return train, [e for e in examples if number[e.first] % 2 and e.second not in known]


def read(path: Path, task: Task) -> list[Example]:
    """The examples of one file; raises DataError, see :func:`load`.

    Cells are separated by tabs and never quoted; line ends may be those of Windows.
    """
    what = f"{path.name} of {task.folder}"
    # GLUE's own dev file of MRPC begins with a byte order mark
    text = files.read_text(path, what, task.sha256.get(path.stem), mark=True)
    lines = text.removesuffix("\n").split("\n")
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    if task.header and tuple(rows[0]) != task.header:
        raise files.DataError(
            f"{what}, line 1: expected the header {', '.join(task.header)}, got {_shown(rows[0])}"
        )
    skipped = bool(task.header)
    found = [
        _example(row, task, f"{what}, line {line}")
        for line, row in enumerate(rows[skipped:], 1 + skipped)
    ]
    _unquoted(rows, what)
    expected = task.rows.get(path.stem, len(found) or 1)
    if len(found) != expected:
        raise files.DataError(
            f"{what}, line {len(rows)}: expected {expected} examples up to here, got {len(found)}"
        )
    return found


def _example(row: list[str], task: Task, where: str) -> Example:
    if len(row) != len(task.columns):
        raise files.DataError(f"{where}: expected {len(task.columns)} columns, got {len(row)}")
    if row[task.label] not in task.labels:
        raise files.DataError(
            f"{where}: label must be one of {', '.join(task.labels)}, got {row[task.label]!r}"
        )
    for number, (cell, pattern) in enumerate(zip(row, task.columns, strict=True), 1):
        if not re.fullmatch(pattern, cell, re.DOTALL):
            raise files.DataError(f"{where}: column {number} cannot be {_shown([cell])}")
    first, *second = (row[column].strip() for column in task.sentences)
    return Example(first, second[0] if second else None, task.labels.index(row[task.label]))


def _unquoted(rows: list[list[str]], what: str) -> None:
    """Refuse what a spreadsheet wrote: every cell with a quotation mark quoted, its own doubled."""
    marked = [(line, cell) for line, row in enumerate(rows, 1) for cell in row if '"' in cell]
    quoted = [line for line, cell in marked if re.fullmatch(r'"([^"]|"")*"', cell)]
    if len(quoted) == len(marked) and any('""' in cell[1:-1] for _, cell in marked):
        raise files.DataError(f"{what}, line {quoted[0]}: cells are quoted, and must not be")


def _shown(cells: list[str]) -> str:
    text = ", ".join(map(repr, cells))
    return text if len(text) < 100 else f"{text[:100]}..."
