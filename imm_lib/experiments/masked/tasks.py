"""Four GLUE tasks: their tab-separated files, and the scores that GLUE reports of them."""

import csv
import hashlib
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from imm_lib import checks, data, results

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
        sentences, label: which of the file's columns hold them.
        labels: names of the labels, in order.
        score: "mcc", "f1" or "accuracy", what GLUE reports.
        header: whether the first line names the columns.
        halves: the dev file's questions in turn are train and dev, where the training file is not
        to be had.
        archive: address of a zip file that holds the splits, where there is one.
        sha256: of these splits, as far as they are known.
    """

    folder: str
    sentences: tuple[int, ...]
    label: int
    labels: tuple[str, ...]
    score: str
    header: bool = True
    halves: bool = False
    archive: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)


_QNLI = Task(
    "QNLI",
    (1, 2),
    3,
    ("entailment", "not_entailment"),
    "accuracy",
    archive="https://dl.fbaipublicfiles.com/glue/data/QNLIv2.zip",
    sha256={"dev": "ac19409dcb04631eaaa094bdebdcf621086bc352503dfb6a1a648b614986f4fd"},
)
TASKS = {
    "CoLA": Task(
        "CoLA",
        (3,),
        1,
        ("0", "1"),
        "mcc",
        header=False,
        archive="https://dl.fbaipublicfiles.com/glue/data/CoLA.zip",
        sha256={
            "train": "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624",
            "dev": "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd",
        },
    ),
    "MRPC": Task("MRPC", (3, 4), 0, ("0", "1"), "f1"),
    "RTE": replace(
        _QNLI,
        folder="RTE",
        archive="https://dl.fbaipublicfiles.com/glue/data/RTE.zip",
        sha256={
            "train": "41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c",
            "dev": "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb",
        },
    ),
    "QNLI": _QNLI,
    "QNLI-small": replace(_QNLI, halves=True),
}


def _task(name: str) -> Task:
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def available(name: str, split: str = "train") -> bool:
    """Whether a split's file lies on this machine."""
    return any(path.is_file() for path in _places(_task(name), split))


def _places(task: Task, split: str) -> list[Path]:
    return [
        folder / "glue" / task.folder / f"{'dev' if task.halves else split}.tsv"
        for folder in data.folders()
    ]


def _download(name: str, split: str) -> Path:
    """The file of a split, in the cache, where all splits of a task arrive or none; raises
    DataError.

    They are verified but for QNLI's training split, whose checksum is not known.
    """
    task, target = TASKS[name], data.cache() / "glue" / TASKS[name].folder
    wanted = target / _places(task, split)[0].name
    advice = f"set IMM_DATA to a folder that holds glue/{task.folder}/{wanted.name}"
    if task.archive is None:
        raise data.DataError(
            f"{name} has no public archive: rebuild its files from Microsoft's paraphrase corpus, and {advice}"
        )
    with tempfile.TemporaryDirectory() as folder:
        archive = data.retrieve(
            f"{name} (archive)", task.archive, None, "archive.zip", Path(folder), advice
        )
        try:
            with zipfile.ZipFile(archive) as files:
                found = {part: files.read(f"{task.folder}/{part}.tsv") for part in SPLITS}
        except (zipfile.BadZipFile, zlib.error, KeyError) as error:
            raise data.DataError(
                f"{name} (archive) is not what it was: {error}; {advice}"
            ) from None
    for part, known in task.sha256.items():
        if hashlib.sha256(found[part]).hexdigest() != known:
            raise data.DataError(
                f"{name} ({part}) came with a wrong checksum and was not kept: try again, or {advice}"
            )
    for part, content in found.items():
        results.write_bytes(target / f"{part}.tsv", content)
    return wanted


def load(name: str, split: str) -> list[Example]:
    """The examples of a split, from ``IMM_DATA``, else from the cache, else downloaded with a
    progress bar.

    Args:
        name: of TASKS.
        split: "train" or "dev".

    Raises:
        ValueError: an unknown task or split.
        DataError: a file that cannot be had or read; or, with its line, a row with too few columns,
            an empty sentence, or a label that the task does not have.
    """
    task = _task(name)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    path = next((place for place in _places(task, split) if place.is_file()), None) or _download(
        name, split
    )
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
    """The examples of one file; raises DataError, see :func:`load`."""
    needed, found = max(*task.sentences, task.label) + 1, []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise data.DataError(
            f"{path.name} of {task.folder} must be tab-separated UTF-8: {error}"
        ) from None
    for line, row in rows[task.header :]:
        where = f"{path.name} of {task.folder}, line {line}"
        if len(row) < needed:
            raise data.DataError(f"{where}: expected at least {needed} columns, got {len(row)}")
        sentences, label = [row[column].strip() for column in task.sentences], row[task.label]
        if label not in task.labels:
            raise data.DataError(
                f"{where}: label must be one of {', '.join(task.labels)}, got {label!r}"
            )
        if not all(sentences):
            raise data.DataError(f"{where}: expected a sentence, got an empty one")
        found.append(
            Example(
                sentences[0], sentences[1] if len(sentences) > 1 else None, task.labels.index(label)
            )
        )
    if not found:
        raise data.DataError(f"{path.name} of {task.folder} must hold examples, got none")
    return found


def score(name: str, log_probs: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    """Measures of predictions.

    Args:
        name: of TASKS.
        log_probs: (N, C) of the labels.
        label: (N,).

    Returns:
        "accuracy" and, where GLUE reports it, "mcc" or "f1", of which "score" is the task's own;
        "auc", the area under the ROC curve, and "nats", the mean log-loss, which move before a
        prediction turns over.

    Raises:
        TypeError, ValueError: an unknown task, or predictions that are not as many as labels.

    >>> p = torch.tensor([[0.4, 0.6], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1]])
    >>> score("CoLA", p.log(), torch.tensor([1, 0, 0, 0]))["mcc"].__round__(3)
    0.577
    """
    from sklearn import metrics

    task, label = _task(name), checks.ids("label", label)
    if log_probs.shape != (len(label), len(task.labels)):
        raise ValueError(
            f"log_probs must be {(len(label), len(task.labels))}, got {tuple(log_probs.shape)}"
        )
    predicted, p = log_probs.argmax(1), log_probs[:, 1].exp()
    known = {
        "accuracy": metrics.accuracy_score,
        "mcc": metrics.matthews_corrcoef,
        "f1": metrics.f1_score,
    }
    scores = {
        name: float(known[name](label, predicted))
        for name in dict.fromkeys(("accuracy", task.score))
    }
    auc = float(metrics.roc_auc_score(label, p)) if len(label.unique()) == 2 else 0.5
    nats = torch.nn.functional.nll_loss(log_probs, label).item()
    return {**scores, "score": scores[task.score], "auc": auc, "nats": nats}
