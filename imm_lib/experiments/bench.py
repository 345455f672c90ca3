"""The core's benchmarks: ratios measured in one process, never asserted in a test (``python -m
imm_lib bench``).

- sampling: SampledIMM joint against sequential, seconds and peak bytes, over k.
- sharing: one set of extended contexts per distinct word of a Penn Treebank batch against one per
  position.
- moving_average: a training step of a language model with MovingAverageIMM against the same step
  without.
- kneser_ney: fit and evaluation against NLTK's KneserNeyInterpolated on the same tokens.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from imm_lib.contexts import GroupedContexts
from imm_lib.estimators import SampledIMM
from imm_lib.experiments import Experiment
from imm_lib.experiments.language.models import LSTM
from imm_lib.experiments.timing import compare, peak_bytes, tokens
from imm_lib.induced import imm_risk
from imm_lib.surrogates import MovingAverageIMM
from imm_lib.targets import KneserNeyBigram

CONFIG = {
    "sampling": {
        "k": [1, 4, 16, 64],
        "short": 256,
        "extended": 2048,
        "width": 256,
        "labels": 1000,
        "batch": 512,
    },
    "sharing": {"batches": 5, "k": 10, "width": 200, "batch": 20, "unroll": 35},
    "moving_average": {"width": 200, "layers": 2, "batch": 20, "unroll": 35, "batches": 3},
    "kneser_ney": {"train": 20_000, "test": 500},
    "repeats": 9,
}


def _pair_model(
    extended: int, width: int, labels: int, generator: torch.Generator
) -> tuple[nn.Module, Tensor]:
    """A network of two hidden layers, and random features of the extended contexts."""
    features = torch.randn(extended, width, generator=generator)
    inner = [nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*inner, nn.Linear(width, labels), nn.LogSoftmax(-1)), features


def _step(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    def work() -> None:
        network.zero_grad(set_to_none=True)
        loss().backward()

    return work


def sampling(config: dict, device: torch.device, repeats: int) -> dict:
    """Joint against sequential sampling over k: seconds, peak bytes of a forward and backward pass,
    their ratios.
    """
    generator = torch.Generator().manual_seed(0)
    network, features = _pair_model(
        config["extended"], config["width"], config["labels"], generator
    )
    network, features = network.to(device), features.to(device)
    short = torch.randint(config["short"], (config["extended"],), generator=generator).to(device)
    contexts = GroupedContexts(short)
    target = torch.rand(config["short"], config["labels"], generator=generator)
    target, batch = target.to(device).softmax(-1), short[: config["batch"]]

    def step(k: int, sequential: bool) -> Callable[[], None]:
        draws = torch.Generator().manual_seed(1)
        term = SampledIMM(target, contexts, k, sequential, draws)
        return _step(network, lambda: term(lambda _, extended: network(features[extended]), batch))

    table = {}
    for k in config["k"]:
        joint, sequential = step(k, False), step(k, True)
        seconds = compare({"joint": joint, "sequential": sequential}, repeats, device)
        memory = {"joint": peak_bytes(joint, device), "sequential": peak_bytes(sequential, device)}
        table[str(k)] = {
            "joint_s": seconds["joint"],
            "sequential_s": seconds["sequential"],
            "time_ratio": seconds["sequential"] / seconds["joint"],
            "joint_bytes": memory["joint"],
            "sequential_bytes": memory["sequential"],
        }
    growth = table["64"]["sequential_bytes"] / table["4"]["sequential_bytes"] - 1
    return {"by_k": table, "sequential_growth_4_to_64": growth}


def sharing(config: dict, device: torch.device, repeats: int) -> dict:
    """Samples shared between equal words of a batch against samples of every position's own:
    seconds and ratio.
    """
    words, vocab_size = tokens()
    words = words.to(device)
    contexts = GroupedContexts(words[:-1], vocab_size)
    target = KneserNeyBigram.fit(words, vocab_size)
    network = LSTM(vocab_size, config["width"]).to(device)
    size, k = config["batch"] * config["unroll"], config["k"]
    generator = torch.Generator().manual_seed(0)
    shared = SampledIMM(target, contexts, k, generator=generator)
    chunk = 70  # positions a pass, so that 700 positions of 10 histories fit in memory

    def query(short: Tensor, extended: Tensor) -> Tensor:
        previous = words[(extended - 1).clamp_min(0)]
        words_read = torch.stack([previous, short], 1)
        return network(words_read, network.begin(len(short)))[0][:, 1]

    start = torch.randint(len(words) - size, (1,), generator=generator).item()
    batch = words[start : start + size]
    distinct = batch.unique()

    def positions() -> None:
        for part in batch.split(chunk):
            extended = contexts.sample(part, k, generator)
            log_q = query(part.repeat_interleave(k), extended.flatten()).unflatten(0, (-1, k))
            (imm_risk(target(part), log_q).sum() / size).backward()

    def types() -> None:
        for group in distinct.split(chunk):
            part = batch[torch.isin(batch, group)]
            (shared(query, part) * len(part) / size).backward()

    seconds = compare({"shared": types, "per_position": positions}, repeats, device)
    return {
        "positions": size,
        "distinct": len(distinct),
        "shared_s": seconds["shared"],
        "per_position_s": seconds["per_position"],
        "ratio": seconds["per_position"] / seconds["shared"],
    }


def moving_average(config: dict, device: torch.device, repeats: int) -> dict:
    """A language model's training step with MovingAverageIMM over the plain step: seconds, ratio,
    bytes.
    """
    words, vocab_size = tokens()
    words = words.to(device)
    network = LSTM(vocab_size, config["width"], config["layers"]).to(device)
    target = KneserNeyBigram.fit(words, vocab_size)
    term = MovingAverageIMM(target, vocab_size, vocab_size, momentum=0.1).to(device)
    length, batch = config["unroll"], config["batch"]
    streams = words[: len(words) // batch * batch].view(batch, -1)
    turn = {"plain": 0, "with_imm": 0}

    def loss(name: str) -> Tensor:
        start = turn[name] % config["batches"] * length
        turn[name] += 1
        x, y = streams[:, start : start + length], streams[:, start + 1 : start + length + 1]
        log_q = network(x, network.begin(batch))[0].flatten(0, 1)
        primary = nn.functional.nll_loss(log_q, y.flatten())
        return primary if name == "plain" else primary + 0.2 * term(log_q, x.flatten())

    steps = {name: _step(network, partial(loss, name)) for name in turn}
    seconds = compare(steps, repeats, device)
    memory = {name: peak_bytes(work, device) for name, work in steps.items()}
    return {
        "plain_s": seconds["plain"],
        "with_imm_s": seconds["with_imm"],
        "ratio": seconds["with_imm"] / seconds["plain"],
        "plain_bytes": memory["plain"],
        "with_imm_bytes": memory["with_imm"],
        "table_bytes": term.table.numel() * term.table.element_size(),
    }


def kneser_ney(config: dict, device: torch.device, repeats: int) -> dict:
    """Fit plus evaluation against NLTK's interpolated Kneser-Ney bigram on the same tokens: seconds
    and ratio.
    """
    from nltk.lm import KneserNeyInterpolated
    from nltk.util import bigrams

    words, vocab_size = tokens()
    train, test = words[: config["train"] + config["test"]].split([config["train"], config["test"]])
    texts = [[str(w) for w in part.tolist()] for part in (train, test)]
    train, test = train.to(device), test.to(device)

    def ours() -> float:
        return KneserNeyBigram.fit(train, vocab_size).perplexity(test)

    def nltk() -> float:
        model = KneserNeyInterpolated(2)
        model.fit([bigrams(texts[0]), ((w,) for w in texts[0])], texts[0])
        scores = [model.score(b, [a]) for a, b in bigrams(texts[1])]
        return math.exp(-sum(math.log(max(s, 1e-12)) for s in scores) / len(scores))

    seconds = compare({"ours": ours, "nltk": nltk}, repeats, device)
    return {
        "train_tokens": len(train),
        "test_tokens": len(test),
        "ours_s": seconds["ours"],
        "nltk_s": seconds["nltk"],
        "ratio": seconds["nltk"] / seconds["ours"],
    }


PARTS = {
    "sampling": sampling,
    "sharing": sharing,
    "moving_average": moving_average,
    "kneser_ney": kneser_ney,
}


def _units(config: dict, seed: int) -> list[dict]:
    return [{"part": part} for part in PARTS]


def _run(unit: dict, config: dict, device: torch.device) -> dict:
    return PARTS[unit["part"]](config[unit["part"]], device, config["repeats"])


def _check(config: dict) -> None:
    if not {4, 64} <= set(config["sampling"]["k"]):  # between which the growth is reported
        raise ValueError(f"sampling/k must hold 4 and 64, got {config['sampling']['k']}")


def _table(result: dict) -> list[list[str]]:
    part = {entry["unit"]["part"]: entry["numbers"] for entry in result["units"]}
    rows = [["measurement", "value"]]
    for k, numbers in part["sampling"]["by_k"].items():
        joint, sequential = numbers["joint_bytes"] / 1e6, numbers["sequential_bytes"] / 1e6
        rows.append([f"sampling, k = {k}: sequential / joint time", f"{numbers['time_ratio']:.2f}"])
        rows.append(
            [f"sampling, k = {k}: joint, sequential peak", f"{joint:.1f} MB, {sequential:.1f} MB"]
        )
    growth = part["sampling"]["sequential_growth_4_to_64"]
    rows.append(["sequential peak, growth from k = 4 to 64", f"{100 * growth:.1f} %"])
    rows.append(["samples per position / shared, time", f"{part['sharing']['ratio']:.2f}"])
    average = f"{part['moving_average']['ratio']:.2f}"
    rows.append(["step with moving-average IMM / plain step, time", average])
    rows.append(["Kneser-Ney, NLTK / ours, time", f"{part['kneser_ney']['ratio']:.0f}"])
    return rows


EXPERIMENTS = [
    Experiment(
        name="bench-core",
        scales={"full": CONFIG, "ci": {**CONFIG, "repeats": 1}},
        units=_units,
        run=_run,
        table=_table,
        check=_check,
    )
]
