"""The GLUE experiments by name: pretraining the head, the premise, and every task with every arm
(Table 2).
"""

import statistics
from dataclasses import fields

import torch

from imm_lib import checks
from imm_lib.experiments import Experiment, options, resume
from imm_lib.experiments.masked import readings, tasks, training
from imm_lib.experiments.masked.encoder import DEFAULT
from imm_lib.experiments.masked.measures import premise
from imm_lib.experiments.masked.prefixes import Prefixes
from imm_lib.experiments.masked.starts import (
    examples,
    start,
    stream,
    target,
    untrained,
    with_shares,
)
from imm_lib.experiments.masked.terms import ARMS


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
    raw = untrained(config["model"], config["tasks"])
    before = with_shares(raw, stream(raw, config["pretrain"]["pieces"])).to(device)
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


def _choice(name: str, held: dict, examples: dict) -> Experiment:
    quick = {**_CI, **held, **_QUICK, "examples": _FEW, "held_out": [100, 110]}
    return Experiment(
        name=name,
        scales={
            "full": {**_FULL, **held, "examples": examples, "held_out": [2000, 3000]},
            "ci": quick,
        },
        units=_choices,
        run=_task,
        table=readings.choice_table,
        check=_check,
    )


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
    _choice("masked-choice", _CHOICE, {"CoLA": {"train": 500, "dev": 1000}}),
    _choice("masked-choice-mrpc", _CHOICE_MRPC, {"MRPC": {"train": 400, "dev": 1000}}),
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
