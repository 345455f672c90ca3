"""What a fused last layer costs: training steps with it over the plain step, in one process; the
memory of a large vocabulary; the sampled risk; Table 5's pass.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from imm_lib.estimators import Query
from imm_lib.experiments import Experiment
from imm_lib.experiments.language import terms
from imm_lib.experiments.language.fused import Fused, FusedSampled
from imm_lib.experiments.language.histories import Histories, read
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.speed import Bench
from imm_lib.experiments.language.text import Block, Stream
from imm_lib.experiments.timing import compare, peak_bytes, with_memory_kept
from imm_lib.fused import FusedIMM
from imm_lib.head import Scratch
from imm_lib.targets import KneserNeyBigram

LAM = 0.2

HISTORIES = 40
"""Blocks of the text from which contexts are drawn, 28,000 words or 3 % of the Penn Treebank: in a
shorter text more of them are drawn twice, and are run once.
"""


class _CrossEntropy(terms.Term):
    """The cross-entropy as torch's own function of logits."""

    @override
    def joint(
        self, model: LanguageModel, features: Tensor, block: Block, lam: float
    ) -> tuple[Tensor, Tensor]:
        logits = F.linear(features.flatten(0, 1), *model.last_layer)
        loss = F.cross_entropy(logits, block.labels.flatten())
        return loss, loss.detach()


class _Counted(Histories):
    """Histories that note how many are run at each step."""

    def __init__(self, stream: Stream, vocab_size: int):
        super().__init__(stream, vocab_size)
        self.asked: list[int] = []

    @override
    def features(self, model: LanguageModel, state: Tensor | None = None) -> Query:
        run = super().features(model, state)

        def noted(short: Tensor, extended: Tensor) -> Tensor:
            self.asked.append(len(extended))
            return run(short, extended)

        return noted


def _steps(config: dict, device: torch.device, repeats: int) -> dict:
    """Seconds of a training step, and ratios to the plain one (log_softmax and nll_loss)."""
    bench = Bench(config, device)
    bigram = bench.bigram
    works = {
        "plain": bench.step(terms.Term()),
        "F.cross_entropy": bench.step(_CrossEntropy()),
        "plain, fused": bench.step(Fused(bigram, 0.0)),
        "reverse-KD": bench.step(terms.Uncorrected(bigram, LAM)),
        "reverse-KD, fused": bench.step(Fused(bigram, LAM, "none")),
        "moving average": bench.step(terms.MovingAverage(bigram, LAM)),
        "all labels, fused": bench.step(Fused(bigram, LAM, "all")),
        "seen labels, fused": bench.step(Fused(bigram, LAM, "seen")),
    }
    return _ratios(compare(works, repeats, device))


def _ratios(seconds: dict[str, float]) -> dict:
    plain = seconds["plain"]
    return {"seconds": seconds, "ratio": {name: s / plain for name, s in seconds.items()}}


def _sampled(config: dict, device: torch.device, repeats: int) -> dict:
    """The same of the sampled risk with cached states, k = 10, m = 1.

    A context that is run costs the products of a place of the block, of the LSTM and of the last
    layer, forward and backward. So the "products" of a step over those of a plain one are known.
    """
    bench = Bench({**config, "blocks": HISTORIES}, device)
    histories, counted = (_Counted(bench.stream, bench.size) for _ in range(2))
    works = {
        "plain": bench.step(terms.Term()),
        "plain, fused": bench.step(Fused(bench.bigram, 0.0)),
        "cached states": bench.step(terms.Sampled(bench.bigram, LAM, histories)),
        "cached states, fused": bench.step(FusedSampled(bench.bigram, LAM, counted)),
    }
    found = _ratios(compare(works, repeats, device))
    contexts = statistics.mean(counted.asked)
    products = 1 + contexts / (config["batch"] * config["unroll"])
    return {**found, "contexts": contexts, "products": products}


def _induced(config: dict, device: torch.device, repeats: int) -> dict:
    """The pass for Table 5's bigram, by block of text, over a plain training step; the cost of the
    table itself, which comes once a pass, is left out.
    """
    bench = Bench(config, device)
    run = bench.run(terms.Term())
    table = FusedIMM(bench.bigram, bench.size, bench.size).to(device)

    def sweep(blocks: int) -> None:
        found = zip(range(blocks), read(run.model, bench.stream), strict=False)
        pairs = ((f.flatten(0, 1), block.words.flatten()) for _, (block, f) in found)
        table.refresh(pairs, *run.model.last_layer)

    many = len(bench.blocks)
    works = {
        "plain": bench.next_step(run),
        "one": lambda: sweep(1),
        "many": lambda: sweep(many),
    }
    seconds = compare(works, repeats, device)
    seconds = {
        "plain": seconds["plain"],
        "pass": (seconds["many"] - seconds["one"]) / (many - 1),
    }
    return _ratios(seconds)


def _memory(config: dict, device: torch.device, repeats: int) -> dict:
    """Peak bytes of the last layer and its loss, forward and backward, of a large vocabulary; bytes
    of the table. Texts follow Zipf's law.
    """
    size, positions = config["vocabulary"], config["positions"]
    draw = torch.Generator().manual_seed(0)
    zipf = 1 / torch.arange(1, size + 1, dtype=torch.float64)
    words = torch.multinomial(zipf, config["words"], replacement=True, generator=draw)
    bigram = KneserNeyBigram.fit(words, size).to(device)
    module = FusedIMM(bigram, size, size, labels="seen").to(device)
    hidden = torch.randn(positions, config["width"], generator=draw).to(device).requires_grad_()
    weight = torch.randn(size, config["width"], generator=draw).mul_(0.1).to(device)
    weight, bias = weight.requires_grad_(), torch.zeros(size, device=device, requires_grad=True)
    short, labels = (words[i : positions + i].to(device) for i in (0, 1))

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            for tensor in (hidden, weight, bias):
                tensor.grad = None
            module.memory = Scratch()  # what it keeps is to count
            loss().backward()

        return work

    def by_hand() -> Tensor:
        return F.nll_loss(F.linear(hidden, weight, bias).log_softmax(1), labels)

    losses = {
        "plain": by_hand,
        "F.cross_entropy": lambda: F.cross_entropy(F.linear(hidden, weight, bias), labels),
        "plain, fused": lambda: module(hidden, weight, bias, labels, short, 0.0),
        "seen labels, fused": lambda: module(hidden, weight, bias, labels, short, LAM),
    }
    found = {name: peak_bytes(step(loss), device) for name, loss in losses.items()}
    buffers = {id(b): b.numel() * b.element_size() for b in module.buffers()}
    return {
        "bytes": found,
        "ratio": {name: value / found["plain"] for name, value in found.items()},
        "pairs": len(bigram.keys),
        "table_bytes": module.table.numel() * module.table.element_size(),
        "module_bytes": sum(buffers.values()),
        "dense_bytes": 4 * size * size,
    }


PARTS = {
    "lstm": _steps,
    "transformer": _steps,
    "sampled": _sampled,
    "induced": _induced,
    "memory": _memory,
}

KEPT = ", memory kept"
"""Ends the name of a part that is run once more where memory, once used, costs nothing again."""


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    part, repeats = unit["part"].removesuffix(KEPT), config["repeats"]
    if part == unit["part"] or device.type != "cpu":  # torch keeps a GPU's memory anyway
        return PARTS[part](config[part], device, repeats)
    return with_memory_kept(PARTS[part], config[part], device, repeats)


def _check(config: dict) -> None:
    if config["induced"]["blocks"] < 2:
        raise ValueError(f"induced.blocks must be at least 2, got {config['induced']['blocks']}")
    positions, words = config["memory"]["positions"], config["memory"]["words"]
    if words <= positions:
        raise ValueError(f"memory.words must be more than its positions, {positions}, got {words}")


def _table(result: dict) -> list[list[str]]:
    rows = [["part", "work", "over plain"]]
    for entry in result["units"]:
        part, numbers = entry["unit"]["part"], entry["numbers"]
        for name, ratio in numbers["ratio"].items():
            rows.append([part, name, f"{ratio:.2f}"])
        if "products" in numbers:
            rows.append([part, "products", f"{numbers['products']:.2f}"])
        if "table_bytes" in numbers:
            rows.append([part, "table", f"{numbers['table_bytes'] / 1e6:.0f} MB"])
            rows.append([part, "table of all labels", f"{numbers['dense_bytes'] / 1e6:.0f} MB"])
    return rows


_TEXT = {"width": 200, "batch": 20, "unroll": 35, "blocks": 3}
_FULL: dict = {
    "lstm": _TEXT,
    "transformer": {**_TEXT, "width": 256, "model": "transformer", "layers": 4},
    "sampled": _TEXT,
    "induced": _TEXT,
    "memory": {"vocabulary": 50_000, "positions": 2048, "words": 2_000_000, "width": 200},
    "repeats": 9,
}
_SMALL = {"width": 8, "batch": 4, "unroll": 5, "blocks": 3}
_QUICK = {
    **{part: {**_FULL[part], **_SMALL} for part in ("lstm", "transformer", "sampled", "induced")},
    "memory": {"vocabulary": 500, "positions": 64, "words": 5000, "width": 8},
    "repeats": 1,
}

EXPERIMENTS = [
    Experiment(
        name="bench-fused",
        scales={"full": _FULL, "ci": _QUICK},
        units=lambda config, seed: [
            {"part": name} for name in (*PARTS, f"lstm{KEPT}", f"sampled{KEPT}")
        ],
        run=_run,
        table=_table,
        check=_check,
    )
]
