"""Small stand-ins for the data sets, so that the second device's tests need none and are quick."""

import pytest
import torch

from imm_lib import data
from imm_lib.experiments import bench, timing
from imm_lib.experiments.language import runs, speed
from imm_lib.experiments.masked import starts, tasks, toy

WORDS = 30


def tokens(size: int = 3000) -> torch.Tensor:
    """Words of Zipf's law; word 0 ends a line."""
    share = 1 / torch.arange(1, WORDS + 1, dtype=torch.float64)
    return torch.multinomial(share, size, True, generator=torch.Generator().manual_seed(0))


def corpus(name: str) -> data.Corpus:
    names = ["<eos>", "<unk>", *(f"word{i}" for i in range(WORDS - 2))]
    return data.Corpus(name, tokens(), tokens(600), tokens(500), names)


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """No file is read or written outside a temporary folder."""
    monkeypatch.setenv("IMM_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("IMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "load", corpus)
    monkeypatch.setattr(runs, "LINES", 10_000)
    for module in (bench, speed, timing):
        monkeypatch.setattr(module, "tokens", lambda: (tokens(), WORDS))
    monkeypatch.setattr(tasks, "load", lambda name, split: toy.agreement(120, len(split)))
    for cached in (runs.texts, starts._large):
        cached.cache_clear()
    yield
    for cached in (runs.texts, starts._large):
        cached.cache_clear()
