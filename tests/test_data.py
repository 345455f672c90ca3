"""Loading corpora: local copies, the cache, verified downloads, and one sentence when something is
wrong.
"""

import errno
import hashlib
import io
import pathlib
import pwd
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from loopback import serving

import imm_lib as imm
from imm_lib import data
from imm_lib.experiments.language.text import Stream, respell

TEXT = {"train": "a b <unk>\nb c\n", "valid": "c a\n", "test": "a\n\nb"}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A corpus of a few words in place of the known ones, and empty folders; no address leads
    anywhere.
    """
    source = data.Source(
        files={split: f"tiny.{split}.txt" for split in TEXT},
        sha256={split: hashlib.sha256(text.encode()).hexdigest() for split, text in TEXT.items()},
        words={"train": 5, "valid": 2, "test": 2},
        url="https://example.invalid/tiny.{split}.txt",
    )
    monkeypatch.setattr(data, "SOURCES", {"tiny": source})
    monkeypatch.setenv("IMM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("IMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in (TEXT | texts).items():
        (folder / f"tiny.{split}.txt").write_bytes(text.encode())


def cached(folder) -> list[str]:
    """What lies in the cache."""
    return sorted(path.name for path in (folder / "cache").rglob("*") if path.is_file())


@pytest.mark.parametrize("place", ["data", "cache"])
def test_local_copies(tiny, place):
    assert not data.available("tiny")
    write(tiny / place / "tiny")
    assert data.available("tiny")
    corpus = data.load("tiny")
    assert corpus.vocab == ["<eos>", "<unk>", "a", "b", "c"]
    assert corpus.train.tolist() == [2, 3, 1, 0, 3, 4, 0]
    assert corpus.valid.tolist() == [4, 2, 0]
    assert corpus.test.tolist() == [2, 0, 0, 3, 0]


def test_downloads_are_verified_and_whole(tiny, monkeypatch):
    pages = {f"/tiny.{split}.txt": text.encode() for split, text in TEXT.items()}
    with serving(pages) as address:
        source = replace(data.SOURCES["tiny"], url=address + "/tiny.{split}.txt")
        monkeypatch.setitem(data.SOURCES, "tiny", source)
        pages["/tiny.valid.txt"] = b"spoilt\n"
        with pytest.raises(
            data.DataError, match=r"tiny \(valid\) came with a wrong checksum.*IMM_DATA"
        ):
            data.load("tiny")
        assert cached(tiny) == ["tiny.train.txt"]
        pages["/tiny.valid.txt"] = TEXT["valid"].encode()
        assert data.load("tiny").valid.tolist() == [4, 2, 0]
    assert data.available("tiny")


def test_no_network(tiny, monkeypatch):
    with serving({}) as address:
        pass
    source = replace(data.SOURCES["tiny"], url=address + "/tiny.{split}.txt")
    monkeypatch.setitem(data.SOURCES, "tiny", source)
    with pytest.raises(
        data.DataError,
        match=r"tiny \(train\) could not be downloaded: no connection.*IMM_DATA to a folder that "
        r"holds tiny/tiny\.train\.txt",
    ):
        data.load("tiny")
    assert cached(tiny) == []


def test_a_cache_that_cannot_be_written_is_found_before_the_download(tiny, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(
        data.DataError, match=r"tiny \(train\) cannot be kept in .*denied.*IMM_CACHE"
    ):
        data.load("tiny")


def test_copies_are_enough_where_there_is_no_home(tiny, monkeypatch):
    write(tiny / "data" / "tiny")
    monkeypatch.delenv("IMM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    assert data.available("tiny")
    assert data.load("tiny").valid.tolist() == [4, 2, 0]
    monkeypatch.delenv("IMM_DATA")
    assert not data.available("tiny")
    with pytest.raises(ValueError, match="IMM_CACHE must name a folder"):
        data.load("tiny")


@pytest.mark.parametrize(
    ("split", "content", "pattern"),
    [
        ("valid", b"c b\n", "has a wrong checksum"),
        ("train", b"", "is empty"),
        ("train", TEXT["train"].encode("utf-16"), "is UTF-16 text, and must be UTF-8"),
        ("train", TEXT["train"].encode("utf-8-sig"), "begins with a byte order mark"),
        ("valid", b"c a\n\0", "has a NUL byte in line 2"),
        ("test", "a\n\né".encode("latin-1"), "has the byte 0xe9 in line 3"),
        ("test", b"a\r\n\r\nb", "has Windows line ends"),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_spoilt_copies(tiny, split, content, pattern, known):
    write(tiny / "data" / "tiny")
    (tiny / "data" / "tiny" / f"tiny.{split}.txt").write_bytes(content)
    if not known:
        data.SOURCES["tiny"].sha256.clear()
    if not known and pattern in ("has a wrong checksum", "has Windows line ends"):
        assert len(data.load("tiny").vocab) == 5  # nothing tells the first, the second is harmless
    else:
        with pytest.raises(data.DataError, match=rf"tiny\.{split}\.txt of tiny {pattern}"):
            data.load("tiny")


def test_a_folder_in_the_place_of_a_file(tiny):
    write(tiny / "cache" / "tiny")
    (tiny / "data" / "tiny" / "tiny.valid.txt").mkdir(parents=True)
    with pytest.raises(data.DataError, match=r"tiny\.valid\.txt must be a file, and is a folder"):
        data.load("tiny")


@pytest.mark.parametrize(
    "convert",
    [
        *(lambda x, kind=kind: np.array(x, kind) for kind in ("u2", ">u2", "i1", "u4", "u8")),
        *(lambda x, kind=kind: torch.tensor(x).to(kind) for kind in (torch.uint16, torch.int8)),
        lambda x: np.frombuffer(np.array(x, "u2").tobytes(), "u2"),  # as from a file: read-only
    ],
)
def test_a_corpus_of_any_integers_is_one_of_int64(convert):
    corpus = data.Corpus("own", convert([0, 1, 2]), convert([1]), convert([2]), ["a", "b", "c"])
    assert [(t.dtype, t.tolist()) for t in (corpus.train, corpus.valid, corpus.test)] == [
        (torch.int64, ids) for ids in ([0, 1, 2], [1], [2])
    ]


@pytest.mark.parametrize(
    ("stream", "error", "words"),
    [
        (np.array([0.0, 1.0]), TypeError, r"valid must be an integer .* got a float64 array"),
        (np.array([True]), TypeError, r"valid must be an integer .* got a bool array"),
        (np.array(["a"]), TypeError, r"valid must be an integer .* got a <U1 array"),
        (torch.tensor([0.0]), TypeError, "valid must be an integer tensor of ids"),
        (np.array([-1, 0], "i2"), ValueError, r"valid must hold ids in \[0, 3\), got -1..0"),
        (np.array([3], "u2"), ValueError, r"valid must hold ids in \[0, 3\), got 3..3"),
        (np.array([2**63], "u8"), ValueError, r"valid must hold ids in \[0, 3\), got -"),
        (np.array([], "u2"), ValueError, "valid must be .*, 1-D, got"),
        (np.array([[1]], "u2"), ValueError, "valid must be .*, 1-D, got"),
        ([0, 1], TypeError, "valid must be a torch.Tensor"),
    ],
)
def test_a_corpus_of_something_else_is_refused(stream, error, words):
    with pytest.raises(error, match=words):
        data.Corpus("own", torch.tensor([0]), stream, torch.tensor([1]), ["a", "b", "c"])


def test_an_archive_is_unpacked_whole(tiny, monkeypatch):
    """WikiText-2 comes in one zip file: all its splits get into the cache, verified, or none."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for split, text in TEXT.items():
            archive.writestr(f"tiny/{split}.tokens", text)

    pages = {"/tiny.zip": packed.getvalue()}
    with serving(pages) as address:
        source = replace(
            data.SOURCES["tiny"],
            sha256={"archive": hashlib.sha256(b"another").hexdigest()},
            url=f"{address}/tiny.zip",
            members={split: f"tiny/{split}.tokens" for split in TEXT},
        )
        monkeypatch.setitem(data.SOURCES, "tiny", source)
        with pytest.raises(
            data.DataError, match=r"tiny \(archive\) came with a wrong checksum.*IMM_DATA"
        ):
            data.load("tiny")
        assert cached(tiny) == []
        source.sha256["archive"] = hashlib.sha256(packed.getvalue()).hexdigest()
        assert data.load("tiny").valid.tolist() == [4, 2, 0]
    assert cached(tiny) == sorted(source.files.values())


def test_without_a_checksum_words_are_counted_and_known(tiny):
    source = data.SOURCES["tiny"]
    source.sha256.clear()
    write(tiny / "data" / "tiny", valid="c a b\n")
    with pytest.raises(data.DataError, match=r"tiny.valid.txt of tiny must hold 2 words, got 3"):
        data.load("tiny")
    write(tiny / "data" / "tiny", valid="c z\n")
    with pytest.raises(data.DataError, match="word outside its training split: 'z'"):
        data.load("tiny")


@pytest.mark.parametrize(
    "convert",
    [
        *(lambda x, kind=kind: x.numpy().astype(kind) for kind in ("u1", "u2", ">u2", "i2", "u4")),
        *(lambda x, kind=kind: x.to(kind) for kind in (torch.uint16, torch.uint32, torch.uint64)),
    ],
)
def test_tokens_of_any_integer_dtype_are_read_alike(convert):
    tokens = torch.tensor([0, 1, 2, 0, 1, 0, 2, 2, 1, 0, 1, 1])
    other = convert(tokens)
    fitted, again = (imm.KneserNeyBigram.fit(t, vocab_size=3) for t in (tokens, other))
    assert torch.equal(fitted.dense(), again.dense())
    assert fitted.perplexity(tokens) == fitted.perplexity(other)
    assert torch.equal(fitted(tokens), fitted(other))
    blocks = [[b.words.tolist() for b in Stream(t, 2, 3)] for t in (tokens, other)]
    assert blocks[0] == blocks[1]
    spelt = respell(other, ["a", "b", "c"], ["<unk>", "b"])
    assert spelt.tolist() == [1 if token == 1 else 0 for token in tokens]
    contexts = imm.GroupedContexts(other)
    assert torch.equal(contexts.counts, imm.GroupedContexts(tokens).counts)


@pytest.mark.parametrize("tokens", [np.array([0, -1, 1], "i2"), np.array([0.0, 1.0]), [0, 1]])
def test_tokens_that_are_no_ids_are_refused(tokens):
    for call in (lambda t: imm.KneserNeyBigram.fit(t, 3), Stream, imm.GroupedContexts):
        with pytest.raises((TypeError, ValueError), match=r"(tokens|short) must"):
            call(tokens)


def test_unknown_names():
    for call in (data.load, data.available):
        with pytest.raises(ValueError, match="name must be one of ptb, wikitext2, got 'pbt'"):
            call("pbt")


@pytest.mark.needs_data("wikitext2")
def test_wikitext2():
    corpus = imm.data.load("wikitext2")
    assert len(corpus.vocab) == 33_278
    assert [
        (part == corpus.vocab.index("<eos>")).sum().item() for part in (corpus.valid, corpus.test)
    ] == [3760, 4358]
