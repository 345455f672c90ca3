"""What a training step costs with each term, over the plain step in one process; the memory of a
step and of a large vocabulary; Table 5's pass.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from imm_lib import data
from imm_lib.estimators import Query
from imm_lib.experiments import Experiment, reading
from imm_lib.experiments.language import measures, terms
from imm_lib.experiments.language.fused import Fused, FusedSampled
from imm_lib.experiments.language.histories import Histories, read
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.text import Block, Stream
from imm_lib.experiments.language.training import Run, Settings
from imm_lib.experiments.timing import compare, peak_bytes, tokens, with_memory_kept
from imm_lib.fused import FusedIMM
from imm_lib.head import Scratch
from imm_lib.targets import KneserNeyBigram

LAM = 0.2

HISTORIES = 40
"""Blocks of the text from which contexts are drawn, 28,000 words or 3 % of the Penn Treebank: in a
shorter text more of them are drawn twice, and are run once.
"""


def steps(run: Run) -> Iterator[float]:
    """Training steps over the text's blocks, again and again; the cross-entropy of each, in
    nats.
    """
    state = run.model.train().begin(run.settings.batch)
    for number, block in enumerate(itertools.chain.from_iterable(itertools.repeat(run.train))):
        run.optimiser.zero_grad(set_to_none=True)
        value, state = run.step(block, state, number, True)
        run.optimiser.step()
        yield value


class Bench:
    """A text of a few blocks, a bigram of a whole one, and training runs over the blocks."""

    def __init__(self, config: dict, device: torch.device):
        words, self.size = tokens()
        known = {"width", "batch", "unroll", "model", "layers"} & config.keys()
        self.settings = Settings(**{key: config[key] for key in known}, lr=0.1)
        words = words.to(device)
        self.bigram = KneserNeyBigram.fit(words, self.size)
        few = words[: config["batch"] * config["unroll"] * config["blocks"] + 1]
        vocab = [str(word) for word in range(self.size)]
        self.texts = data.Corpus("bench", few, few, few, vocab)
        self.stream = Stream(few, config["batch"], config["unroll"])

    def sampled(self, steps: int = 1, k: int = 10, cache: bool = True) -> terms.Sampled:
        """Sampled IMM over histories of the text."""
        return terms.Sampled(self.bigram, LAM, Histories(self.stream, self.size, steps, cache), k)

    def run(self, term: terms.Term) -> Run:
        """A training run that has begun."""
        torch.manual_seed(0)
        run = Run(self.texts, term, self.settings)
        term.begin_epoch(run.model, run.train, True)
        return run

    def step(self, term: terms.Term) -> Callable[[], float]:
        """A function that takes the next block's training step."""
        return partial(next, steps(self.run(term)))


def _ratios(seconds: dict[str, float]) -> dict:
    plain = seconds["plain"]
    return {"seconds": seconds, "ratio": {name: s / plain for name, s in seconds.items()}}


def _unfused(config: dict, device: torch.device, repeats: int) -> dict:
    """Seconds of a step with each term, and of the passes over the text that come on top once an
    epoch.
    """
    bench = Bench(config, device)
    bigram, stream = bench.bigram, bench.stream
    model, histories = bench.run(terms.Term()).model, Histories(stream, bench.size)
    one = Stream(stream.words[: stream.batch + 1], stream.batch)
    added = {
        "plain": terms.Term(),
        "reverse-KD": terms.Uncorrected(bigram, LAM),
        "moving average": terms.MovingAverage(bigram, LAM),
        "moving average, own pass": terms.OwnPass(terms.MovingAverage(bigram, LAM)),
        "serialized": terms.Serialized(bigram, LAM),
        "cached, m = 1": bench.sampled(),
        "cached, m = 5": bench.sampled(5),
        "re-run, m = 35": bench.sampled(config["unroll"], cache=False),
    }
    sweeps = {
        "states": lambda: histories.refresh(model),
        "induced": lambda: measures.induced(model, stream, bigram),
        "table": lambda: measures.induced(model, one, bigram),
    }
    works = {name: bench.step(term) for name, term in added.items()}
    seconds = compare({**works, **sweeps}, repeats, device)
    found = _ratios({name: seconds[name] for name in works})
    # what a pass adds to each of its blocks; the table's own cost, of V x V entries, comes once a
    # pass
    passes = {"states": seconds["states"], "induced": seconds["induced"] - seconds["table"]}
    extra = {name: value / len(stream) / seconds["plain"] for name, value in passes.items()}
    swept = {"serialized": "induced", "cached, m = 1": "states", "cached, m = 5": "states"}
    whole = {name: found["ratio"][name] + extra[kind] for name, kind in swept.items()}
    return {
        **found,
        "ratio_with_sweep": whole,
        "sweep_over_plain": extra,
        "table_s": seconds["table"],
    }


def _published(config: dict, device: torch.device, repeats: int) -> dict:
    """The published scheme, whose k histories of every place are run again on each fifth block,
    over the plain step.
    """
    bench = Bench(config, device)
    histories = Histories(bench.stream, bench.size, config["unroll"], cache=False)
    published = terms.Published(bench.bigram, LAM, histories)
    works = {"plain": bench.step(terms.Term()), "published": bench.step(published)}
    seconds = compare(works, 1, device)
    ratio = seconds["published"] / seconds["plain"]
    return {"seconds": seconds, "ratio_when_sampled": ratio, "ratio_every_fifth": (4 + ratio) / 5}


def _step_memory(config: dict, device: torch.device, repeats: int) -> dict:
    """Peak bytes of a step: plain, and with cached states in chunks over k."""
    bench = Bench({**config, "blocks": 1}, device)
    found = {"plain": peak_bytes(bench.step(terms.Term()), device)}
    for k in (5, 10, 20):
        found[f"cached, k = {k}"] = peak_bytes(bench.step(bench.sampled(k=k)), device)
    return {"bytes": found, "growth_5_to_20": found["cached, k = 20"] / found["cached, k = 5"] - 1}


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


def _fused(config: dict, device: torch.device, repeats: int) -> dict:
    """Seconds of a training step, and ratios to the plain one (log_softmax and nll_loss)."""
    bench = Bench(config, device)
    bigram = bench.bigram
    added = {
        "plain": terms.Term(),
        "F.cross_entropy": _CrossEntropy(),
        "plain, fused": Fused(bigram, 0.0),
        "reverse-KD": terms.Uncorrected(bigram, LAM),
        "reverse-KD, fused": Fused(bigram, LAM, "none"),
        "moving average": terms.MovingAverage(bigram, LAM),
        "all labels, fused": Fused(bigram, LAM, "all"),
        "seen labels, fused": Fused(bigram, LAM, "seen"),
    }
    works = {name: bench.step(term) for name, term in added.items()}
    return _ratios(compare(works, repeats, device))


def _sampled(config: dict, device: torch.device, repeats: int) -> dict:
    """The same of the sampled risk with cached states, k = 10, m = 1.

    A context that is run costs the products of a place of the block, of the LSTM and of the last
    layer, forward and backward. So the "products" of a step over those of a plain one are known.
    """
    bench = Bench({**config, "blocks": HISTORIES}, device)
    counted = _Counted(bench.stream, bench.size)
    works = {
        "plain": bench.step(terms.Term()),
        "plain, fused": bench.step(Fused(bench.bigram, 0.0)),
        "cached states": bench.step(bench.sampled()),
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
    table, many = FusedIMM(bench.bigram, bench.size, bench.size).to(device), len(bench.stream)

    def sweep(blocks: int) -> None:
        found = itertools.islice(read(run.model, bench.stream), blocks)
        pairs = ((f.flatten(0, 1), block.words.flatten()) for block, f in found)
        table.refresh(pairs, *run.model.last_layer)

    works = {"plain": partial(next, steps(run)), "one": partial(sweep, 1)}
    seconds = compare({**works, "many": partial(sweep, many)}, repeats, device)
    by_block = (seconds["many"] - seconds["one"]) / (many - 1)
    return _ratios({"plain": seconds["plain"], "pass": by_block})


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
    losses: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: F.nll_loss(F.linear(hidden, weight, bias).log_softmax(1), labels),
        "F.cross_entropy": lambda: F.cross_entropy(F.linear(hidden, weight, bias), labels),
        "plain, fused": lambda: module(hidden, weight, bias, labels, short, 0.0),
        "seen labels, fused": lambda: module(hidden, weight, bias, labels, short, LAM),
    }

    def step(loss: Callable[[], Tensor]) -> None:
        for tensor in (hidden, weight, bias):
            tensor.grad = None
        module.memory = Scratch()  # what it keeps is to count
        loss().backward()

    found = {name: peak_bytes(partial(step, loss), device) for name, loss in losses.items()}
    buffers = {id(b): b.numel() * b.element_size() for b in module.buffers()}
    return {
        "bytes": found,
        "ratio": {name: value / found["plain"] for name, value in found.items()},
        "pairs": len(bigram.keys),
        "table_bytes": module.table.numel() * module.table.element_size(),
        "module_bytes": sum(buffers.values()),
        "dense_bytes": 4 * size * size,
    }


UNFUSED = {"steps": _unfused, "published": _published, "memory": _step_memory}
FUSED = {
    "lstm": _fused,
    "transformer": _fused,
    "sampled": _sampled,
    "induced": _induced,
    "memory": _memory,
}
KEPT = ", memory kept"
"""Ends the name of a part that is run once more where memory, once used, costs nothing again."""


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    part, repeats = unit["part"].removesuffix(KEPT), config["repeats"]
    if part == unit["part"] or device.type != "cpu":  # torch keeps a GPU's memory anyway
        return FUSED[part](config[part], device, repeats)
    return with_memory_kept(FUSED[part], config[part], device, repeats)


def _check(config: dict) -> None:
    if config["induced"]["blocks"] < 2:
        raise ValueError(f"induced.blocks must be at least 2, got {config['induced']['blocks']}")
    positions, words = config["memory"]["positions"], config["memory"]["words"]
    if words <= positions:
        raise ValueError(f"memory.words must be more than its positions, {positions}, got {words}")


def _table(result: dict) -> list[list[str]]:
    """Ratios, and bytes; all that does not depend on how fast the machine is."""
    shown = [["part", "what", "value"]]
    for row in reading.rows(result):
        for name, value in row.items():
            kind, _, work = name.partition("/")
            if "bytes" in kind:
                shown.append([row["part"], work or kind, f"{value / 1e6:.0f} MB"])
            elif kind not in ("part", "seconds", "table_s", "contexts", "pairs"):
                shown.append([row["part"], name.replace("/", ", "), f"{value:.2f}"])
    return shown


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
        name="bench-language",
        scales={
            "full": {**_TEXT, "repeats": 9},
            "ci": {**_TEXT, "width": 16, "batch": 4, "unroll": 5, "repeats": 1},
        },
        units=lambda config, seed: [{"part": name} for name in UNFUSED],
        run=lambda unit, config, device: UNFUSED[unit["part"]](config, device, config["repeats"]),
        table=_table,
    ),
    Experiment(
        name="bench-fused",
        scales={"full": _FULL, "ci": _QUICK},
        units=lambda config, seed: [
            {"part": name} for name in (*FUSED, f"lstm{KEPT}", f"sampled{KEPT}")
        ],
        run=_run,
        table=_table,
        check=_check,
    ),
]
