"""What each term costs: a training step with it over the plain one, in one process; peak memory;
Table 5's pass.
"""

from collections.abc import Callable

import torch

from imm_lib import data
from imm_lib.experiments import Experiment
from imm_lib.experiments.language import measures, terms
from imm_lib.experiments.language.histories import Histories
from imm_lib.experiments.language.text import Stream
from imm_lib.experiments.language.training import Run, Settings
from imm_lib.experiments.timing import compare, peak_bytes, tokens
from imm_lib.targets import KneserNeyBigram


class Bench:
    """A text of a few blocks, a bigram of a whole one, and training steps over the blocks in
    turn.
    """

    def __init__(self, config: dict, device: torch.device):
        words, self.size = tokens()
        self.settings = Settings(
            width=config["width"],
            batch=config["batch"],
            unroll=config["unroll"],
            epochs=1,
            model=config.get("model", "lstm"),
            layers=config.get("layers", 2),
        )
        words = words.to(device)
        self.bigram = KneserNeyBigram.fit(words, self.size)
        few = words[: config["batch"] * config["unroll"] * config["blocks"] + 1]
        vocab = [str(word) for word in range(self.size)]
        self.texts = data.Corpus("bench", few, few, few, vocab)
        self.stream = Stream(few, config["batch"], config["unroll"])
        self.blocks = list(self.stream)

    def sampled(
        self, steps: int, k: int = 10, cache: bool = True, words: int = 70
    ) -> terms.Sampled:
        """Sampled IMM over histories of the text."""
        return terms.Sampled(
            self.bigram, 0.2, Histories(self.stream, self.size, steps, cache), k, words
        )

    def run(self, term: terms.Term) -> Run:
        """A training run that has begun."""
        torch.manual_seed(0)
        run = Run(self.texts, term, self.settings)
        term.begin_epoch(run.model, run.train, True)
        return run

    def step(self, term: terms.Term) -> Callable[[], None]:
        """A function that takes the next block's training step."""
        return self.next_step(self.run(term))

    def next_step(self, run: Run) -> Callable[[], None]:
        """The same of a run."""
        optimiser = torch.optim.SGD(run.model.parameters(), 0.1)
        begin, turn = run.model.train().begin(self.settings.batch), [0]

        def work() -> None:
            optimiser.zero_grad(set_to_none=True)
            run.step(self.blocks[turn[0] % len(self.blocks)], begin, 0, True)
            optimiser.step()
            turn[0] += 1

        return work


def _steps(config: dict, device: torch.device, repeats: int) -> dict:
    """Medians of a step of each kind, and of the passes over the text that come on top once an
    epoch, in seconds.
    """
    bench = Bench(config, device)
    run = bench.run(terms.Term())
    steps = {
        "plain": bench.next_step(run),
        "reverse-KD": bench.step(terms.Uncorrected(bench.bigram, 0.2)),
        "moving average": bench.step(terms.MovingAverage(bench.bigram, 0.2)),
        "moving average, own pass": bench.step(
            terms.MovingAverage(bench.bigram, 0.2, own_pass=True)
        ),
        "serialized": bench.step(terms.Serialized(bench.bigram, 0.2)),
        "cached, m = 1": bench.step(bench.sampled(1)),
        "cached, m = 5": bench.step(bench.sampled(5)),
        "re-run, m = 35": bench.step(bench.sampled(config["unroll"], cache=False)),
    }
    model, histories = run.model, Histories(bench.stream, bench.size)
    one = Stream(bench.stream.words[: bench.settings.batch + 1], bench.settings.batch)
    sweeps = {
        "states": lambda: histories.refresh(model),
        "induced": lambda: measures.induced(model, bench.stream, bench.bigram),
        "table": lambda: measures.induced(model, one, bench.bigram),
    }
    seconds = compare({**steps, **sweeps}, repeats, device)
    # what a pass adds to each of its blocks; the table's own cost, of V x V entries, comes once a
    # pass
    per_block = {
        "states": seconds["states"] / len(bench.blocks),
        "induced": (seconds["induced"] - seconds["table"]) / len(bench.blocks),
    }
    sweep = {"serialized": "induced", "cached, m = 1": "states", "cached, m = 5": "states"}
    plain = seconds["plain"]
    return {
        "seconds": {name: seconds[name] for name in steps},
        "ratio": {name: seconds[name] / plain for name in steps},
        "ratio_with_sweep": {
            name: (seconds[name] + per_block[s]) / plain for name, s in sweep.items()
        },
        "sweep_over_plain": {name: value / plain for name, value in per_block.items()},
        "table_s": seconds["table"],
    }


def _published(config: dict, device: torch.device, repeats: int) -> dict:
    """The published scheme, whose k histories of every place are run again on each fifth block,
    over the plain step.
    """
    bench = Bench(config, device)
    histories = Histories(bench.stream, bench.size, config["unroll"], cache=False)
    works = {
        "plain": bench.step(terms.Term()),
        "published": bench.step(terms.Published(bench.bigram, 0.2, histories)),
    }
    seconds = compare(works, 1, device)
    ratio = seconds["published"] / seconds["plain"]
    return {"seconds": seconds, "ratio_when_sampled": ratio, "ratio_every_fifth": (4 + ratio) / 5}


def _memory(config: dict, device: torch.device, repeats: int) -> dict:
    """Peak bytes of a step: plain, and with cached states in chunks over k."""
    bench = Bench({**config, "blocks": 1}, device)
    found = {"plain": peak_bytes(bench.step(terms.Term()), device)}
    for k in (5, 10, 20):
        found[f"cached, k = {k}"] = peak_bytes(bench.step(bench.sampled(1, k)), device)
    return {"bytes": found, "growth_5_to_20": found["cached, k = 20"] / found["cached, k = 5"] - 1}


PARTS = {"steps": _steps, "published": _published, "memory": _memory}


def _table(result: dict) -> list[list[str]]:
    part = {entry["unit"]["part"]: entry["numbers"] for entry in result["units"]}
    rows = [["measurement", "value"]]
    for name, ratio in part["steps"]["ratio"].items():
        rows.append([f"step, {name} / plain", f"{ratio:.2f}"])
    for name, ratio in part["steps"]["ratio_with_sweep"].items():
        rows.append([f"the same with its pass once an epoch, {name}", f"{ratio:.2f}"])
    for name, ratio in part["steps"]["sweep_over_plain"].items():
        rows.append([f"pass for {name} / plain training epoch", f"{ratio:.2f}"])
    rows.append(
        [
            "published scheme, step with samples / plain",
            f"{part['published']['ratio_when_sampled']:.0f}",
        ]
    )
    rows.append(
        [
            "published scheme, every fifth block / plain",
            f"{part['published']['ratio_every_fifth']:.1f}",
        ]
    )
    for name, size in part["memory"]["bytes"].items():
        rows.append([f"peak, {name}", f"{size / 1e6:.0f} MB"])
    rows.append(
        ["peak, growth from k = 5 to 20", f"{100 * part['memory']['growth_5_to_20']:.1f} %"]
    )
    return rows


_FULL = {"width": 200, "batch": 20, "unroll": 35, "blocks": 3, "repeats": 9}

EXPERIMENTS = [
    Experiment(
        name="bench-language",
        scales={"full": _FULL, "ci": {**_FULL, "width": 16, "batch": 4, "unroll": 5, "repeats": 1}},
        units=lambda config, seed: [{"part": name} for name in PARTS],
        run=lambda unit, config, device: PARTS[unit["part"]](config, device, config["repeats"]),
        table=_table,
    )
]
