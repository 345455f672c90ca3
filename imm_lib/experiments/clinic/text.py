"""The benchmark's texts: settings are chosen on validation text, for each seed, and reported on
test text.

A training run that is stored under the same configuration is read, not repeated. The knobs are
those that the language experiments train: the learning rate of plain training, λ of the two terms,
and the weight of a mixture with the bigram. Scores are nats per word.
"""

import math

import torch

from imm_lib import results
from imm_lib.experiments.language import runs as language
from imm_lib.experiments.options import one_of

STORED = ("language-methods", "language-sizes", "language-large")
"""Results whose runs may be read."""

FAMILIES = {
    "plain": ("baseline", "baseline, lr 0.5"),
    "reverse distillation": ("baseline", "reverse-KD"),
    "IMM": ("baseline", "moving average"),
    "IMM, λ = 1": ("moving average, λ = 1",),
}
"""How the arms begin from which each method chooses; without a term it is plain training."""


def _members(family: str, arms: list[str]) -> list[str]:
    """The arms of a family: whole names, or what stands before the λ."""
    heads = FAMILIES[family]
    return [arm for arm in arms if arm in heads or arm.split(", λ")[0] in heads]


def stored(unit: dict, config: dict, arm: str) -> dict | None:
    """The numbers of a stored run of the same corpus, settings, arm, size and seed."""
    for name in STORED:
        try:
            result = results.load(name)
        except results.ResultError:
            continue
        same = all(result["config"][key] == config[key] for key in ("corpus", "held_out"))
        if not same or result["config"]["settings"] != config["settings"]:
            continue
        if result["config"]["arms"].get(arm) != config["arms"][arm]:
            continue
        wanted = {"arm": arm, "lines": unit["lines"], "seed": unit["seed"]}
        for entry in result["units"]:
            if entry["unit"] == wanted:
                return entry["numbers"]
    return None


def run(unit: dict, config: dict, device: torch.device) -> dict:
    """Every method on one seed's text.

    Raises:
        ValueError: a task whose size has no arms.
    """
    one_of("task", unit["task"], config["by_task"])
    own = config["settings_by_task"].get(unit["task"], {})
    config = {**config, "settings": {**config["settings"], **own}}
    read, numbers = [], {}
    for arm in config["by_task"][unit["task"]]:
        found = stored(unit, config, arm) if config["reuse"] else None
        read += [arm] if found is not None else []
        key = {"arm": arm, "lines": unit["lines"], "seed": unit["seed"]}
        numbers[arm] = found if found is not None else language.run(key, config, device)
    usable = {arm: n for arm, n in numbers.items() if "diverged" not in n}
    return {"methods": _methods(usable), "read": read, "diverged": sorted(numbers.keys() - usable)}


def _methods(numbers: dict[str, dict]) -> dict[str, dict]:
    """By method: its loss on test text, of the arm that is best on validation text."""
    found = {}
    for family in FAMILIES:
        members = _members(family, list(numbers))
        if not members:
            continue
        arm = min(members, key=lambda name: numbers[name]["valid"])
        loss = math.log(numbers[arm]["test"])
        found[family] = {"loss": [round(loss, 6)], "arm": [arm]}
        if family in ("plain", "IMM"):
            mixed = "interpolation" if family == "plain" else "IMM + interpolation"
            arm = min(members, key=lambda name: numbers[name]["mixture"]["valid"])
            loss = math.log(numbers[arm]["mixture"]["test"])
            found[mixed] = {"loss": [round(loss, 6)], "arm": [arm]}
    bigram = next(iter(numbers.values()))["bigram"]["test"]
    found["target"] = {"loss": [round(math.log(bigram), 6)], "arm": ["bigram"]}
    return found


def units(config: dict, seed: int) -> list[dict]:
    """Tasks by seeds."""
    return [
        {"task": task, "lines": lines, "seed": seed + s}
        for task, lines, seeds in config["tasks"]
        for s in range(seeds)
    ]
