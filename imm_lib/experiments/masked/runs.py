"""The GLUE experiments by name: pretraining the head, the premise, and every task with every arm
(Table 2).
"""

import copy
import functools
import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from imm_lib import checks, data, results
from imm_lib.experiments import Experiment, options, resume
from imm_lib.experiments.masked import readings, tasks, training
from imm_lib.experiments.masked.encoder import DEFAULT, Head, MaskedLM, load, tiny
from imm_lib.experiments.masked.measures import premise
from imm_lib.experiments.masked.prefixes import Prefixes
from imm_lib.experiments.masked.target import Mixture, fit
from imm_lib.experiments.masked.tasks import Example
from imm_lib.experiments.masked.terms import ARMS
from imm_lib.targets import KneserNeyBigram

Sequences = list[tuple[Tensor, Tensor]]


def stream(model: MaskedLM, pieces: int) -> Tensor:
    """The first ``pieces`` of WikiText-2's training text, as the model's tokenizer cuts it."""
    corpus = data.load("wikitext2")
    unknown = model.tokenizer.unk_token
    lines: list[str] = []
    words: list[str] = []
    for word in (corpus.vocab[i] for i in corpus.train[:pieces].tolist()):
        if word == "<eos>":
            lines.append(" ".join(words))
            words = []
        else:
            words.append(unknown if word == "<unk>" else word)
    encoded = model.tokenizer(
        [line for line in lines if line], add_special_tokens=False, verbose=False
    )["input_ids"]
    return torch.tensor([piece for line in encoded for piece in line])[:pieces]


def sequences(model: MaskedLM, text: Tensor, length: int) -> Sequences:
    """A stream cut into sequences of ``length`` pieces with the first and the last token; the last
    is shorter.
    """
    ends = (
        torch.tensor([model.tokenizer.cls_token_id]),
        torch.tensor([model.tokenizer.sep_token_id]),
    )
    parts = [torch.cat([ends[0], part, ends[1]]) for part in text.split(length - 2)]
    return [(ids, torch.zeros_like(ids)) for ids in parts]


def _untrained(model: str, names: Sequence[str]) -> MaskedLM:
    if model != "tiny":
        return load(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny(
            [e.first for name in names for e in tasks.load(name, "train")[:200]],
            width=16,
            limit=512,
        )


def with_shares(model: MaskedLM, text: Tensor) -> MaskedLM:
    """The model before pretraining: the bias of a new head is set to the log-shares of a text's
    pieces, in place.
    """
    if isinstance(model.head, Head):
        counts = (
            torch.bincount(text, minlength=model.vocab_size).double() + 1
        )  # on the CPU, as the text is
        model.head.bias.data.copy_((counts / counts.sum()).log())
    return model


def start(config: dict, device: torch.device | str = "cpu") -> tuple[MaskedLM, list[float]]:
    """The common starting point of all arms, and its course of pretraining: from its file, or
    trained and written.

    A model with a masked-LM head of its own is taken as it is.
    """
    model = _untrained(config["model"], config["tasks"]).to(device)
    if not isinstance(model.head, Head):
        return model, []
    from safetensors.torch import load_file, save

    plan = config["pretrain"]
    made = [
        config["model"],
        plan,
        *(config["tasks"] if config["model"] == "tiny" else []),
    ]  # whose words it knows
    name = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]
    file = data.cache() / "masked" / f"{name}.safetensors"
    course = file.with_suffix(".json")
    if file.is_file() and course.is_file():
        model.load_state_dict(load_file(file))
        return model, json.loads(course.read_text())["loss"]
    text = stream(model, plan["pieces"])
    settings = training.Settings(epochs=plan["epochs"], batch=plan["batch"], lr=plan["lr"])
    unfinished = file.with_suffix(".pt")
    cut = sequences(model, text, plan["length"])
    losses = training.pretrain(with_shares(model, text), cut, settings, unfinished)
    results.write_bytes(course, json.dumps({"loss": losses}).encode())
    results.write_bytes(file, save(model.state_dict()))
    unfinished.unlink(missing_ok=True)
    return model, losses


def target(encoded: Sequences, config: dict) -> Mixture:
    """The mixture of the task's bigram and that of WikiText-2."""
    large = _large(config["model"], tuple(config["tasks"]), config["target_pieces"])
    return fit(
        [ids for ids, _ in encoded], copy.deepcopy(large)
    )  # a copy, as Module.to moves it for good


@functools.lru_cache(maxsize=1)
def _large(model: str, names: tuple[str, ...], pieces: int) -> KneserNeyBigram:
    """WikiText-2's bigram, which takes a tenth of a unit's time, and is the same for all units."""
    known = _untrained(model, names)
    return KneserNeyBigram.fit(stream(known, pieces), known.vocab_size)


def examples(name: str, config: dict, seed: int = 0) -> dict[str, list[Example]]:
    """A task's examples, in random order (the files are sorted by source); as many as declared.

    Every seed draws its own training examples, so that an interval over seeds is also one over
    them; all have the same dev examples. With "held_out" these of the seed's training split stand
    for the dev split, which remains for what is reported; another seed may train on them.
    """
    found = {
        split: _shuffled(tasks.load(name, split), seed if split == "train" else 0)
        for split in tasks.SPLITS
    }
    if "held_out" in config:
        found["dev"] = found["train"][slice(*config["held_out"])]
    return {split: found[split][: config["examples"][name][split]] for split in tasks.SPLITS}


def _shuffled(found: list[Example], seed: int) -> list[Example]:
    return [
        found[i]
        for i in torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    ]


def _pretrain(unit: dict, config: dict, device: torch.device) -> dict:
    _, losses = start(config, device)
    size = max(1, len(losses) // 50)
    return {
        "loss": [
            round(statistics.fmean(losses[i : i + size]), 4) for i in range(0, len(losses), size)
        ]
    }


def _premise(unit: dict, config: dict, device: torch.device) -> dict:
    """Before pretraining and after it: what target, induced bigram and full model know of held-out
    words.
    """
    found, parts = {}, examples(unit["task"], config, unit["seed"])
    untrained = _untrained(config["model"], config["tasks"])
    before = with_shares(untrained, stream(untrained, config["pretrain"]["pieces"])).to(device)
    for when, model in (("before", before), ("after", start(config, device)[0])):
        encoded = {split: model.encode(parts[split]) for split in tasks.SPLITS}
        prefixes = {split: Prefixes(encoded[split], model).to(device) for split in tasks.SPLITS}
        mixture = target(encoded["train"], config).to(device)
        found[when] = premise(
            model, mixture, prefixes["train"], prefixes["dev"], config["places"], config["k"]
        )
    return {**found, "weight": mixture.weight}


def _settings(config: dict, unit: dict) -> training.Settings:
    known = {f.name for f in fields(training.Settings)}
    return training.Settings(**{k: v for k, v in {**config, **unit}.items() if k in known})


def _task(unit: dict, config: dict, device: torch.device) -> dict:
    """One arm's fine-tuning on one seed: dev scores, norms of gradients by term, seconds of a step.

    With "premise" also what the tuned model's views know of held-out words.
    """
    name = unit["task"]
    parts = examples(name, config, unit["seed"])  # first, as a mistake in a file is found at once
    model, _ = start(config, device)
    settings, reading = _settings(config, unit), config.get("premise")
    encoded = {split: model.encode(parts[split]) for split in tasks.SPLITS}
    mixture = None
    if reading or unit["arm"] not in ("base", "MLM"):
        mixture = target(encoded["train"], config).to(device)
    file = resume.checkpoint("run")
    tuned = training.fine_tune(model, name, parts["train"], parts["dev"], mixture, settings, file)
    history = [{key: round(value, 5) for key, value in entry.items()} for entry in tuned["history"]]
    found = {
        "scores": tuned["scores"],
        "history": history,
        "weight": None if mixture is None else mixture.weight,
    }
    if reading and mixture is not None:
        prefixes = {split: Prefixes(encoded[split], model).to(device) for split in tasks.SPLITS}
        found["premise"] = premise(
            tuned["model"], mixture, prefixes["train"], prefixes["dev"], **reading
        )
    return found


_PRETRAIN = {"pieces": 1_000_000, "length": 128, "epochs": 1, "batch": 16, "lr": 5e-4}
_FULL = {"model": DEFAULT, "pretrain": _PRETRAIN, "target_pieces": 2_000_000}
_CI = {
    **{"model": "tiny", "target_pieces": 5000},
    "pretrain": {"pieces": 2000, "length": 32, "epochs": 1, "batch": 16, "lr": 1e-3},
}
_LEARNED = {"lr": 1e-4, "mlm": 0.01, "lam": 0.1, "k": 5, "places": 2, "epochs": 3, "batch": 16}
_QUICK = {**_LEARNED, "batch": 8, "epochs": 1, "seeds": 1}
# the weights of the paper, one place of each sentence, and BERT's usual learning rate and batch
_PAPER = {
    "lr": 2e-5,
    "batch": 32,
    "mlm": 1.0,
    "lam": 0.2,
    "places": 0,
    "premise": {"places": 500, "k": 20},
}
_CASES = {
    # task: examples of the premise check
    "CoLA": {"train": 1000, "dev": 1043},
    "RTE": {"train": 1000, "dev": 277},
    "MRPC": {"train": 1000, "dev": 408},
    "QNLI-small": {"train": 1000, "dev": 1000},
}
_TRAINED = {**_CASES, "CoLA": {"train": 800, "dev": 1043}, "MRPC": {"train": 240, "dev": 408}}
"""Examples of a CPU's full scale, as many as five seeds of five arms take in two hours of one core.
"""
_FELT = {"lam": 1.0, "places": 8}
"""MRPC's run, with the weights that its choice found, showed that λ = .1 at two places leaves the
induced bigram where it was; so small a term tests nothing.
"""
_OWN = {"CoLA": _FELT, "RTE": _FELT, "QNLI-small": _FELT, "MRPC": {"mlm": 0.1}}
"""What a task's runs do not share with the others'."""
_TUNED = {**_FULL, **_LEARNED, "premise": {"places": 50, "k": 5}, "seeds": 5}
_FEW = {name: {"train": 24, "dev": 10} for name in [*_CASES, "QNLI"]}
_ALL = {name: {"train": None, "dev": None} for name in ("CoLA", "MRPC", "RTE", "QNLI")}


def _arms(config: dict, seed: int) -> list[dict]:
    seeds = range(seed, seed + checks.count("seeds", config["seeds"]))
    return [
        {"task": task, "arm": arm, "seed": s}
        for task in config["tasks"]
        for s in seeds
        for arm in ARMS
    ]


def _experiment(name: str, full: dict, gpu: bool = False) -> Experiment:
    quick = {
        **_CI,
        **_QUICK,
        "tasks": full["tasks"],
        "examples": {task: _FEW[task] for task in full["tasks"]},
    }
    return Experiment(
        name=name,
        scales={"full": full, "ci": quick},
        units=_arms,
        run=_task,
        table=readings.table,
        check=_check,
        gpu=gpu,
    )


def _check(config: dict) -> None:
    """Raise ValueError for an unknown task or arm, or settings that no fine-tuning has."""
    for task in config["tasks"]:
        options.one_of("tasks", task, tasks.TASKS)
        options.one_of("examples", task, config.get("examples", {task: None}))
    _settings(config, {})
    options.each("judged", config.get("judged", ARMS), ARMS)
    if "grid" in config:
        options.each("grid", config["grid"], ("mlm", "lam"))
        for name in ("mlm", "lam"):
            options.filled(f"grid/{name}", config["grid"].get(name))
    if "held_out" in config and not (
        len(config["held_out"]) == 2 and config["held_out"][0] < config["held_out"][1]
    ):
        raise ValueError(f"held_out must be two places in order, got {config['held_out']}")


def _choices(config: dict, seed: int) -> list[dict]:
    """Each number in its arms, the simpler arms' numbers held."""
    judged = {"mlm": ["MLM"], "lam": config.get("judged", ["MLM + IMM"])}
    return [
        {"task": task, "arm": arm, key: value, "seed": seed}
        for task in config["tasks"]
        for key, arms in judged.items()
        for arm in arms
        for value in config["grid"][key]
    ]


_SOME = {"places": 200, "k": 10, "tasks": list(_CASES)}
_CHOICE = {
    **_LEARNED,
    **{"mlm": 0.03, "lam": 0.1, "tasks": ["CoLA"]},
    "grid": {"mlm": [0.01, 0.03, 0.1], "lam": [0.1, 1.0]},
}
"""What is held while a number is tried, and the numbers that are tried; _LEARNED has those that
were best.
"""
_CHOICE_MRPC = {
    **_LEARNED,
    "tasks": ["MRPC"],
    "grid": {"mlm": [0.01, 0.1], "lam": [0.1, 1.0]},
    "judged": ["MLM + IMM", "MLM + noising"],
    "held_out": [2000, 3000],
}

EXPERIMENTS = [
    Experiment(
        name="masked-pretrain",
        scales={"full": {**_FULL, "tasks": []}, "ci": {**_CI, "tasks": ["CoLA"]}},
        units=lambda config, seed: [{"seed": seed}],
        run=_pretrain,
        table=readings.pretrain_table,
        check=_check,
    ),
    Experiment(
        name="masked-premise",
        scales={
            "full": {
                **_FULL,
                **_SOME,
                "examples": {name: {**limits, "dev": 200} for name, limits in _CASES.items()},
            },
            "ci": {**_CI, **_SOME, "tasks": ["CoLA"], "places": 10, "k": 2, "examples": _FEW},
        },
        units=lambda config, seed: [{"task": task, "seed": seed} for task in config["tasks"]],
        run=_premise,
        table=readings.premise_table,
        check=_check,
    ),
    Experiment(
        name="masked-choice",
        scales={
            "full": {
                **_FULL,
                **_CHOICE,
                "examples": {"CoLA": {"train": 500, "dev": 1000}},
                "held_out": [2000, 3000],
            },
            "ci": {**_CI, **_CHOICE, **_QUICK, "examples": _FEW, "held_out": [100, 110]},
        },
        units=_choices,
        run=_task,
        table=readings.choice_table,
        check=_check,
    ),
    Experiment(
        name="masked-choice-mrpc",
        scales={
            "full": {
                **_FULL,
                **_CHOICE_MRPC,
                "examples": {"MRPC": {"train": 400, "dev": 1000}},
                "held_out": [2000, 3000],
            },
            "ci": {**_CI, **_CHOICE_MRPC, **_QUICK, "examples": _FEW, "held_out": [100, 110]},
        },
        units=_choices,
        run=_task,
        table=readings.choice_table,
        check=_check,
    ),
    *(
        _experiment(
            f"masked-{name.lower()}",
            {**_TUNED, **_OWN.get(name, {}), "tasks": [name], "examples": {name: limits}},
        )
        for name, limits in _TRAINED.items()
    ),
    *(
        _experiment(
            f"masked-{name.lower()}-all",
            {**_TUNED, **_OWN[name], "tasks": [name], "examples": {name: _ALL[name]}},
            gpu=True,
        )
        for name in ("CoLA", "MRPC", "RTE")
    ),
    _experiment(
        "masked-paper",
        {**_TUNED, **_PAPER, "model": "bert-base-uncased", "tasks": list(_ALL), "examples": _ALL},
        gpu=True,
    ),
]
