"""Loading corpora: local copies, the cache, verified downloads, and one sentence when something is
wrong.
"""

import hashlib
import io
import sys
import zipfile
from dataclasses import replace

import pooch
import pytest

import imm_lib as imm
from imm_lib import data

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
    return tmp_path


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in (TEXT | texts).items():
        (folder / f"tiny.{split}.txt").write_bytes(text.encode())


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
    class Downloader:
        texts = TEXT

        def __init__(self, **_):
            pass

        def __call__(self, url, output, _pooch):
            split = url.split(".")[-2]
            with open(output, "wb") as stream:
                stream.write(self.texts[split].encode())

    monkeypatch.setattr(pooch, "HTTPDownloader", Downloader)
    Downloader.texts = TEXT | {"valid": "spoilt\n"}
    with pytest.raises(
        data.DataError, match=r"tiny \(valid\) came with a wrong checksum.*IMM_DATA"
    ):
        data.load("tiny")
    assert sorted(p.name for p in (tiny / "cache").rglob("*") if p.is_file()) == ["tiny.train.txt"]
    Downloader.texts = TEXT
    assert data.load("tiny").valid.tolist() == [4, 2, 0]
    assert data.available("tiny")


@pytest.mark.parametrize("package", ["pooch", "tqdm"])
def test_a_download_says_which_package_it_misses(tiny, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        data.DataError, match=rf"needs {package}: pip install 'imm_lib\[data\]', or set IMM_DATA"
    ):
        data.load("tiny")
    assert not any(p.is_file() for p in (tiny / "cache").rglob("*"))


def test_no_network(tiny, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(pooch.core, "stream_download", refuse)
    with pytest.raises(
        data.DataError,
        match=r"tiny \(train\) could not be downloaded \(ConnectionError\).*IMM_DATA",
    ):
        data.load("tiny")
    assert not any(p.is_file() for p in (tiny / "cache").rglob("*"))


@pytest.mark.parametrize(
    ("texts", "pattern"),
    [
        ({"valid": "c b\n"}, "tiny.valid.txt of tiny has a wrong checksum"),
        ({"train": ""}, "tiny.train.txt of tiny has a wrong checksum"),
    ],
)
def test_spoilt_copies(tiny, texts, pattern):
    write(tiny / "data" / "tiny", **texts)
    with pytest.raises(data.DataError, match=pattern):
        data.load("tiny")


def test_an_archive_is_unpacked_whole(tiny, monkeypatch):
    """WikiText-2 comes in one zip file: all its splits appear in the cache, verified, or none does."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for split, text in TEXT.items():
            archive.writestr(f"tiny/{split}.tokens", text)

    class Downloader:
        def __init__(self, **_):
            pass

        def __call__(self, url, output, _pooch):
            with open(output, "wb") as stream:
                stream.write(packed.getvalue())

    monkeypatch.setattr(pooch, "HTTPDownloader", Downloader)
    source = replace(
        data.SOURCES["tiny"],
        sha256={"archive": hashlib.sha256(b"another").hexdigest()},
        url="https://example.invalid/tiny.zip",
        members={split: f"tiny/{split}.tokens" for split in TEXT},
    )
    monkeypatch.setitem(data.SOURCES, "tiny", source)
    with pytest.raises(
        data.DataError, match=r"tiny \(archive\) came with a wrong checksum.*IMM_DATA"
    ):
        data.load("tiny")
    assert not any(p.is_file() for p in (tiny / "cache").rglob("*"))
    source.sha256["archive"] = hashlib.sha256(packed.getvalue()).hexdigest()
    assert data.load("tiny").valid.tolist() == [4, 2, 0]
    assert sorted(p.name for p in (tiny / "cache").rglob("*") if p.is_file()) == sorted(
        source.files.values()
    )


def test_without_a_checksum_words_are_counted_and_known(tiny):
    source = data.SOURCES["tiny"]
    source.sha256.clear()
    write(tiny / "data" / "tiny", valid="c a b\n")
    with pytest.raises(data.DataError, match=r"tiny.valid.txt of tiny must hold 2 words, got 3"):
        data.load("tiny")
    write(tiny / "data" / "tiny", valid="c z\n")
    with pytest.raises(data.DataError, match="word outside its training split: 'z'"):
        data.load("tiny")


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
