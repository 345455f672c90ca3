"""The GLUE experiments by name: pretraining the head, the premise, and every task with every arm (Table 2)."""

import hashlib
import json
import statistics
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from imm_lib import checks, data, results
from imm_lib.experiments import Experiment
from imm_lib.experiments.masked import tasks, training
from imm_lib.experiments.masked.encoder import DEFAULT, Head, MaskedLM, load, tiny
from imm_lib.experiments.masked.measures import premise
from imm_lib.experiments.masked.prefixes import Prefixes
from imm_lib.experiments.masked.target import Mixture, fit
from imm_lib.experiments.masked.tasks import Example
from imm_lib.experiments.masked.terms import ARMS
from imm_lib.targets import KneserNeyBigram

Sequences = list[tuple[Tensor, Tensor]]


def wiki(model: MaskedLM, pieces: int, length: int) -> tuple[Sequences, Tensor]:
    """WikiText-2's training text in sequences of ``length`` pieces, and all of its first ``pieces`` as one stream."""
    corpus = data.load("wikitext2")
    unknown = model.tokenizer.unk_token
    lines, words = [], []
    for word in (corpus.vocab[i] for i in corpus.train[:pieces].tolist()):
        if word == "<eos>":
            lines.append(" ".join(words))
            words = []
        else:
            words.append(unknown if word == "<unk>" else word)
    encoded = model.tokenizer([line for line in lines if line], add_special_tokens=False)["input_ids"]
    stream = torch.tensor([piece for line in encoded for piece in line])[:pieces]
    ends = torch.tensor([model.tokenizer.cls_token_id]), torch.tensor([model.tokenizer.sep_token_id])
    parts = [torch.cat([ends[0], part, ends[1]]) for part in stream.split(length - 2)]
    return [(ids, torch.zeros_like(ids)) for ids in parts], stream


def _untrained(config: dict) -> MaskedLM:
    if config["model"] != "tiny":
        return load(config["model"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny([e.first for name in config["tasks"] for e in tasks.load(name, "train")[:200]], width=16, limit=512)


def start(config: dict) -> tuple[MaskedLM, list[float]]:
    """The common starting point of all arms, and its course of pretraining: from its file, or trained and written.

    A model with a masked-LM head of its own is taken as it is.
    """
    from safetensors.torch import load_file, save

    model = _untrained(config)
    if not isinstance(model.head, Head):
        return model, []
    plan = config["pretrain"]
    name = hashlib.sha256(json.dumps([config["model"], plan], sort_keys=True).encode()).hexdigest()[:12]
    file = data.cache() / "masked" / f"{name}.safetensors"
    course = file.with_suffix(".json")
    if file.is_file() and course.is_file():
        model.load_state_dict(load_file(file))
        return model, json.loads(course.read_text())["loss"]
    sequences, stream = wiki(model, plan["pieces"], plan["length"])
    counts = torch.bincount(stream, minlength=model.vocab_size).double() + 1
    model.head.bias.data.copy_((counts / counts.sum()).log())
    settings = training.Settings(epochs=plan["epochs"], batch=plan["batch"], lr=plan["lr"])
    unfinished = file.with_suffix(".pt")
    losses = training.pretrain(model, sequences, settings, unfinished)
    results.write_bytes(course, json.dumps({"loss": losses}).encode())
    results.write_bytes(file, save(model.state_dict()))
    unfinished.unlink(missing_ok=True)
    return model, losses


def target(model: MaskedLM, sequences: Sequences, config: dict) -> Mixture:
    """The mixture of the task's bigram and that of WikiText-2."""
    _, stream = wiki(model, config["target_pieces"], config["pretrain"]["length"])
    return fit([ids for ids, _ in sequences], KneserNeyBigram.fit(stream, model.vocab_size))


def examples(name: str, config: dict) -> dict[str, list[Example]]:
    """A task's examples; of the training ones the first that the configuration declares."""
    found = {split: tasks.load(name, split) for split in tasks.SPLITS}
    limit = config["examples"]
    return {"train": found["train"][: limit["train"]], "dev": found["dev"][: limit["dev"]]}


def _pretrain(unit: dict, config: dict, device: torch.device) -> dict:
    _, losses = start(config)
    size = max(1, len(losses) // 50)
    return {"loss": [round(statistics.fmean(losses[i : i + size]), 4) for i in range(0, len(losses), size)]}


def _premise(unit: dict, config: dict, device: torch.device) -> dict:
    """Before pretraining and after it: what target, induced bigram and full model know of held-out words."""
    found, parts = {}, examples(unit["task"], config)
    for when, model in (("before", _untrained(config)), ("after", start(config)[0])):
        model = model.to(device)
        sequences = {split: model.encode(parts[split]) for split in tasks.SPLITS}
        prefixes = {split: Prefixes(sequences[split], model) for split in tasks.SPLITS}
        mixture = target(model, sequences["train"], config)
        found[when] = premise(model, mixture, prefixes["train"], prefixes["dev"], config["places"], config["k"])
    return {**found, "weight": mixture.weight}


def _settings(config: dict, unit: dict) -> training.Settings:
    known = {f.name for f in fields(training.Settings)}
    return training.Settings(**{k: v for k, v in config.items() if k in known}, arm=unit["arm"], seed=unit["seed"])


def _task(unit: dict, config: dict, device: torch.device) -> dict:
    """One arm's fine-tuning on one seed: dev scores, norms of gradients by term, seconds of a step."""
    (name,) = config["tasks"]
    model, _ = start(config)
    parts = examples(name, config)
    settings = _settings(config, unit)
    mixture = None if unit["arm"] in ("base", "MLM") else target(model, model.encode(parts["train"]), config)
    identity = hashlib.sha256(json.dumps([unit, config, results.code()], sort_keys=True).encode()).hexdigest()[:16]
    file = Path(results.folder()) / ".partial" / f"masked-{identity}.pt"
    tuned = training.fine_tune(model.to(device), name, parts["train"], parts["dev"], mixture, settings, file)
    file.unlink(missing_ok=True)
    history = [{key: round(value, 5) for key, value in entry.items()} for entry in tuned["history"]]
    return {"scores": tuned["scores"], "history": history, "weight": None if mixture is None else mixture.weight}


def paired(result: dict) -> dict[str, dict]:
    """By arm: "score", its mean and half-width; "gain" over the arm "base", paired by seed; "step", CPU seconds."""
    scores, steps = {}, {}
    for entry in result["units"]:
        unit, numbers = entry["unit"], entry["numbers"]
        scores.setdefault(unit["arm"], {})[unit["seed"]] = 100 * numbers["scores"]["score"]
        own = steps.setdefault(unit["arm"], [])
        own += [epoch["cpu_s"] / epoch["steps"] for epoch in numbers["history"]]
    found = {}
    for arm, by_seed in scores.items():
        seeds = [seed for seed in by_seed if seed in scores["base"]]
        values, base = ([s[seed] for seed in seeds] for s in (by_seed, scores["base"]))
        gain = [a - b for a, b in zip(values, base, strict=True)]
        enough = len(seeds) > 1
        found[arm] = {
            "score": results.mean_interval(values) if enough else (values[0], None),
            "gain": results.mean_interval(gain) if enough else (gain[0], None),
            "step": statistics.fmean(steps[arm]),
            "seeds": len(seeds),
        }
    return found


def _shown(pair: tuple) -> str:
    return f"{pair[0]:.2f}" + (f" ± {pair[1]:.2f}" if pair[1] is not None else "")


def _table(result: dict) -> list[list[str]]:
    rows = [["arm", "score", "less base", "CPU s a step", "seeds"]]
    for arm, f in paired(result).items():
        rows.append([arm, _shown(f["score"]), _shown(f["gain"]), f"{f['step']:.2f}", str(f["seeds"])])
    return rows


def _premise_table(result: dict) -> list[list[str]]:
    rows = [["task", "pretraining", "target", "induced bigram", "model on its prefix", "target less induced"]]
    for entry in result["units"]:
        for when in ("before", "after"):
            read = entry["numbers"][when]
            cells = [f"{read[key]['mean']:.3f}" for key in ("target", "induced", "prefix")]
            difference = read["target - induced"]
            cells.append(f"{difference['mean']:+.3f} ± {2 * difference['se']:.3f}")
            rows.append([entry["unit"]["task"], when, *cells])
    return rows


def _pretrain_table(result: dict) -> list[list[str]]:
    losses = result["units"][0]["numbers"]["loss"]
    shown = range(0, len(losses), max(1, len(losses) // 10))
    return [["share of steps", "loss, nats"], *([f"{i / len(losses):.2f}", f"{losses[i]:.3f}"] for i in shown)]


_PRETRAIN = {"pieces": 1_000_000, "length": 128, "epochs": 1, "batch": 16, "lr": 5e-4}
_FULL = {"model": DEFAULT, "pretrain": _PRETRAIN, "target_pieces": 2_000_000}
_CI = {
    **{"model": "tiny", "target_pieces": 5000},
    "pretrain": {"pieces": 2000, "length": 32, "epochs": 1, "batch": 16, "lr": 1e-3},
}
_CASES = {
    # task: examples of a CPU's full scale, batch
    "CoLA": ({"train": 2000, "dev": 1043}, 32),
    "RTE": ({"train": 1000, "dev": 277}, 16),
    "MRPC": ({"train": 1000, "dev": 408}, 16),
    "QNLI-small": ({"train": 1000, "dev": 1000}, 16),
}


def _experiment(name: str) -> Experiment:
    limits, batch = _CASES[name]
    shared = {"tasks": [name], "mlm": 0.1, "lam": 0.1, "k": 5, "places": 4, "epochs": 3}
    quick = {"examples": {"train": 24, "dev": 10}, "batch": 8, "seeds": 1, "epochs": 1}
    return Experiment(
        name=f"masked-{name.lower()}",
        description=f"fine-tuning on {name}: the task alone, with masked words, with IMM, noising, and a control",
        scales={
            "full": {**_FULL, **shared, "examples": limits, "batch": batch, "seeds": 5},
            "ci": {**_CI, **shared, **quick},
        },
        units=lambda config, seed: [
            {"arm": arm, "seed": seed + s} for s in range(checks.count("seeds", config["seeds"])) for arm in ARMS
        ],
        run=_task,
        table=_table,
    )


_SOME = {"places": 500, "k": 20, "tasks": list(_CASES)}

EXPERIMENTS = [
    Experiment(
        name="masked-pretrain",
        description="a masked-LM head for the encoder of PyPI, trained on WikiText-2 with the encoder",
        scales={"full": {**_FULL, "tasks": []}, "ci": {**_CI, "tasks": ["CoLA"]}},
        units=lambda config, seed: [{"seed": seed}],
        run=_pretrain,
        table=_pretrain_table,
    ),
    Experiment(
        name="masked-premise",
        description="does the target know what the model's induced bigram does not? before and after pretraining",
        scales={
            "full": {**_FULL, **_SOME, "examples": {"train": 2000, "dev": 400}},
            "ci": {**_CI, **_SOME, "tasks": ["CoLA"], "places": 10, "k": 2, "examples": {"train": 20, "dev": 10}},
        },
        units=lambda config, seed: [{"task": task, "seed": seed} for task in config["tasks"]],
        run=_premise,
        table=_premise_table,
    ),
    *(_experiment(name) for name in _CASES),
]
