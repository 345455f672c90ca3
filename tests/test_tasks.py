"""GLUE's files: read as they are, refused with file and line where they are something else;
scores.
"""

import dataclasses
import hashlib
import io
import math
import re
import zipfile

import pytest
import torch
from loopback import serving

from imm_lib.data import DataError
from imm_lib.experiments.masked import Example, scores, tasks


def write(tmp_path, monkeypatch, name, content, rows=None, split="train"):
    """A copy of a split in place of the known ones, of that many rows where it is told."""
    task = tasks.TASKS[name]
    folder = tmp_path / "glue" / task.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.tsv").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    known = {} if rows is None else {split: rows}
    monkeypatch.setitem(tasks.TASKS, name, dataclasses.replace(task, rows=known, sha256={}))
    monkeypatch.setenv("IMM_DATA", str(tmp_path))
    monkeypatch.setenv("IMM_CACHE", str(tmp_path / "cache"))


def test_files_are_read_as_they_are(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, "CoLA", 'x\t1\t\tHe said "go.\ny\t0\t?*\t"Go" said he.\n')
    assert tasks.load("CoLA", "train") == [
        Example('He said "go.', None, 1),
        Example('"Go" said he.', None, 0),
    ]
    assert tasks.available("CoLA") and not tasks.available("CoLA", "dev")


HEADERS = {name: "\t".join(task.header) + "\n" for name, task in tasks.TASKS.items()}
ROWS = {
    "CoLA": "gj04\t1\t\tA b.\n",
    "MRPC": '1\t10\t11\t" A b .\tC d .\n',
    "RTE": "0\tA b.\tC d.\tnot_entailment\n",
    "QNLI": "0\tWho?\tC d.\tentailment\n",
}


def whole(name: str, rows: int = 2) -> str:
    """A small file of a task."""
    return (HEADERS[name] if tasks.TASKS[name].header else "") + ROWS[name] * rows


@pytest.mark.parametrize("name", ROWS)
def test_a_small_file_of_each_task(tmp_path, monkeypatch, name):
    expected = {
        "CoLA": Example("A b.", None, 1),
        "MRPC": Example('" A b .', "C d .", 1),
        "RTE": Example("A b.", "C d.", 1),
        "QNLI": Example("Who?", "C d.", 0),
    }[name]
    forms = (
        whole(name),
        whole(name).removesuffix("\n"),
        whole(name).replace("\n", "\r\n"),
        whole(name).encode("utf-8-sig"),
    )
    for content in forms:
        write(tmp_path, monkeypatch, name, content, rows=2)
        assert tasks.load(name, "train") == [expected] * 2


def faults(name: str) -> dict[str, tuple[str | bytes, str]]:
    """Files of two rows, each with one fault, and what is said of them."""
    header, row = HEADERS[name] if tasks.TASKS[name].header else "", ROWS[name]
    first, width = 1 + bool(header), row.count("\t") + 1
    sentence = tasks.TASKS[name].sentences[0]
    cells = row.removesuffix("\n").split("\t")
    blank = "\t".join([*cells[:sentence], " ", *cells[sentence + 1 :]]) + "\n"
    quoted = [*cells[:sentence], '"He said ""go""."', *cells[sentence + 1 :]]
    other = "\t".join(reversed(cells)) + "\n"
    label = tasks.TASKS[name].labels[1]
    found = {
        "a tab too many": (
            header + row + row.replace(" ", "\t", 1),
            rf"line {first + 1}: expected {width} columns, got {width + 1}",
        ),
        "a tab at the end": (
            header + row + row.replace("\n", "\t\n"),
            rf"line {first + 1}: expected {width} columns, got {width + 1}",
        ),
        "a column too few": (
            header + row.replace("\t", " ", 1) + row,
            rf"line {first}: expected {width} columns, got {width - 1}",
        ),
        "an empty line": (
            header + row + "\n" + row,
            rf"line {first + 1}: expected {width} columns, got 1",
        ),
        "exchanged columns": (header + row + other, rf"line {first + 1}: (label must be|column)"),
        "another label": (
            header + row + row.replace(label, "maybe").replace("entailment", "maybe"),
            rf"line {first + 1}: (label must be one of|expected)",
        ),
        "an empty sentence": (header + row + blank, rf"line {first + 1}: column {sentence + 1} "),
        "a row too few": (header + row, rf"line {first}: expected 2 examples up to here, got 1"),
        "a row too many": (
            header + row * 3,
            rf"line {first + 2}: expected 2 examples up to here, got 3",
        ),
        "cut in a row": (header + row + row[: len(row) // 2].partition("\t")[0], "expected"),
        "quoted cells": (
            header + row.replace('"', "") + "\t".join(quoted) + "\n",
            rf"line {first + 1}: cells are quoted",
        ),
        "an empty file": ("", "train.tsv of .* is empty"),
        "UTF-16": ((header + row * 2).encode("utf-16"), "is UTF-16 text, and must be UTF-8"),
        "Latin-1": (
            (header + row + row.replace(".", "é")).encode("latin-1"),
            rf"the byte 0xe9 in line {first + 1}",
        ),
        "NUL": (header + row + row.replace(".", "\0"), rf"has a NUL byte in line {first + 1}"),
        "Macintosh line ends": ((header + row * 2).replace("\n", "\r"), "line 1: expected"),
    }
    if header:
        found |= {
            "no header": (row * 2, "line 1: expected the header .*, got "),
            "exchanged names": (
                "\t".join(reversed(header[:-1].split("\t"))) + "\n" + row * 2,
                "line 1: expected the header",
            ),
            "the header alone": (header, "line 1: expected 2 examples up to here, got 0"),
        }
    else:
        found["a header"] = (
            "source\tlabel\tmark\tsentence\n" + row * 2,
            "line 1: label must be one of 0, 1, got 'label'",
        )
    return found


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name in ROWS for fault in faults(name)]
)
def test_a_fault_is_named_with_its_file_and_line(tmp_path, monkeypatch, name, fault):
    content, words = faults(name)[fault]
    write(tmp_path, monkeypatch, name, content, rows=2)
    with pytest.raises(DataError, match=rf"train\.tsv of {name}") as caught:
        tasks.load(name, "train")
    assert re.search(words, str(caught.value)), caught.value


@pytest.mark.parametrize("name", ROWS)
def test_a_folder_in_the_place_of_a_file(tmp_path, monkeypatch, name):
    write(tmp_path, monkeypatch, name, whole(name), split="dev")
    (tmp_path / "glue" / name / "train.tsv").mkdir()
    with pytest.raises(DataError, match=rf"{name}/train\.tsv must be a file, and is a folder"):
        tasks.load(name, "train")
    assert not tasks.available(name)


def test_a_copy_is_held_to_the_known_checksum_and_number_of_rows(tmp_path, monkeypatch):
    known = tasks.TASKS["CoLA"]
    write(tmp_path, monkeypatch, "CoLA", whole("CoLA", 521), split="dev")
    monkeypatch.setitem(tasks.TASKS, "CoLA", known)
    with pytest.raises(DataError, match=r"dev\.tsv of CoLA has a wrong checksum: copy it anew"):
        tasks.load("CoLA", "dev")
    monkeypatch.setitem(tasks.TASKS, "CoLA", dataclasses.replace(known, sha256={}))
    with pytest.raises(DataError, match=r"dev\.tsv of CoLA, line 521: expected 1043 examples"):
        tasks.load("CoLA", "dev")


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("IMM_DATA", str(tmp_path))
    monkeypatch.setenv("IMM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        DataError, match=r"MRPC has no public archive.* a folder that holds glue/MRPC/dev\.tsv"
    ):
        tasks.load("MRPC", "dev")
    with pytest.raises(ValueError, match="task must be one of"):
        tasks.load("SST", "dev")
    with pytest.raises(ValueError, match="split must be one of"):
        tasks.load("CoLA", "test")


def test_downloads_are_verified_and_whole(tmp_path, monkeypatch):
    texts = {"train": "x\t1\t\tGo.\n", "dev": "y\t0\t*\tGone.\n"}
    known = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}
    monkeypatch.setenv("IMM_DATA", str(tmp_path))
    monkeypatch.setenv("IMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def packed(**texts):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for split, text in texts.items():
                archive.writestr(f"CoLA/{split}.tsv", text)
        return content.getvalue()

    pages = {}
    with serving(pages) as address:
        task = dataclasses.replace(
            tasks.TASKS["CoLA"], archive=f"{address}/CoLA.zip", sha256=known, rows={}
        )
        monkeypatch.setitem(tasks.TASKS, "CoLA", task)
        for sent, words in (
            (
                packed(train=texts["train"], dev="y\t1\t\tSpoilt.\n"),
                r"CoLA \(dev\) came with a wrong",
            ),
            (
                packed(train=texts["train"]),
                r"CoLA \(archive\) is not what it was.*glue/CoLA/train\.tsv",
            ),
        ):
            pages["/CoLA.zip"] = sent
            with pytest.raises(DataError, match=words):
                tasks.load("CoLA", "train")
            assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
        pages["/CoLA.zip"] = packed(**texts)
        assert tasks.load("CoLA", "train") == [Example("Go.", None, 1)]
    assert tasks.load("CoLA", "dev") == [Example("Gone.", None, 0)]  # which came along


@pytest.mark.parametrize("name", tasks.TASKS)
def test_copies_here_are_those_of_the_archive(name, tmp_path, monkeypatch):
    monkeypatch.setenv("IMM_CACHE", str(tmp_path))
    here = [split for split in tasks.SPLITS if tasks.available(name, split)]
    if not here:
        pytest.skip(f"needs the files of {name}: set IMM_DATA to a folder that holds glue/{name}")
    for split in here:
        found = tasks.load(name, split)
        assert tasks.TASKS[name].halves or len(found) == tasks.TASKS[name].rows[split]


def test_halves_of_a_dev_file_share_neither_question_nor_sentence(tmp_path, monkeypatch):
    folder = tmp_path / "glue" / "QNLI"
    folder.mkdir(parents=True)
    pairs = [("q0", "s0"), ("q1", "s1"), ("q0", "s2"), ("q2", "s3"), ("q1", "s3"), ("q3", "s4")]
    rows = "".join(f"{i}\t{q}\t{s}\tentailment\n" for i, (q, s) in enumerate(pairs))
    task = dataclasses.replace(tasks.TASKS["QNLI-small"], rows={}, sha256={})
    monkeypatch.setitem(tasks.TASKS, "QNLI-small", task)
    (folder / "dev.tsv").write_text("index\tquestion\tsentence\tlabel\n" + rows, encoding="utf-8")
    monkeypatch.setenv("IMM_DATA", str(tmp_path))
    halves = [[e[:2] for e in tasks.load("QNLI-small", split)] for split in ("train", "dev")]
    assert halves == [[("q0", "s0"), ("q0", "s2"), ("q2", "s3")], [("q1", "s1"), ("q3", "s4")]]


def test_scores():
    log_probs = torch.tensor([[0.4, 0.6], [0.3, 0.7], [0.8, 0.2], [0.9, 0.1]]).log()
    label = torch.tensor([1, 0, 0, 0])
    rte = scores.score("RTE", log_probs, label)
    assert rte["accuracy"] == rte["score"] == 0.75 and rte["auc"] == pytest.approx(2 / 3)
    assert rte["nats"] == pytest.approx(-math.log(0.6 * 0.3 * 0.8 * 0.9) / 4)
    assert scores.score("MRPC", log_probs, label)["score"] == pytest.approx(2 / 3)
    assert scores.score("CoLA", log_probs, label)["score"] == pytest.approx(1 / math.sqrt(3))
    with pytest.raises(ValueError, match=r"log_probs must be \(2, 2\), got \(4, 2\)"):
        scores.score("RTE", log_probs, label[:2])


def test_a_sure_model_is_ranked_by_its_odds():
    odds = torch.tensor([90.0, 60.0, 40.0, 20.0, -20.0, -40.0])
    log_probs = torch.stack([torch.zeros(6), odds], 1).log_softmax(1)
    label = torch.tensor([1, 0, 1, 0, 1, 0])
    assert scores.score("RTE", log_probs, label)["auc"] == pytest.approx(6 / 9)
    never = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    assert scores.score("RTE", never, torch.tensor([0, 1]))["auc"] == 1


# the encoder
