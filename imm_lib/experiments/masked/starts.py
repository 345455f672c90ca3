"""What the runs on GLUE begin from: text, the pretrained head, the restricted model, the
examples.
"""

import copy
import functools
import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from imm_lib import data, results
from imm_lib.experiments.masked import tasks, training
from imm_lib.experiments.masked.encoder import Head, MaskedLM, Sequences, load, tiny
from imm_lib.experiments.masked.target import Mixture, fit
from imm_lib.experiments.masked.tasks import Example
from imm_lib.targets import KneserNeyBigram


def stream(model: MaskedLM, pieces: int) -> Tensor:
    """The first ``pieces`` of WikiText-2's training text, as the model's tokenizer cuts it."""
    corpus = data.load("wikitext2")
    spelt = {"<unk>": model.tokenizer.unk_token, "<eos>": "\n"}
    words = [corpus.vocab[i] for i in corpus.train[:pieces].tolist()]
    *lines, _ = " ".join(spelt.get(word, word) for word in words).split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    encoded = model.tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([piece for line in encoded for piece in line])[:pieces]


def sequences(model: MaskedLM, text: Tensor, length: int) -> Sequences:
    """A stream cut into sequences of ``length`` pieces with the first and the last token; the last
    is shorter.
    """
    first = torch.tensor([model.tokenizer.cls_token_id])
    last = torch.tensor([model.tokenizer.sep_token_id])
    parts = [torch.cat([first, part, last]) for part in text.split(length - 2)]
    return [(ids, torch.zeros_like(ids)) for ids in parts]


def untrained(model: str, names: Sequence[str]) -> MaskedLM:
    """The encoder of a name; "tiny" knows the words of the named tasks."""
    if model != "tiny":
        return load(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sentences = [e.first for name in names for e in tasks.load(name, "train")[:200]]
        return tiny(sentences, width=16, limit=512)


def with_shares(model: MaskedLM, text: Tensor) -> MaskedLM:
    """The model before pretraining: the bias of a new head is set to the log-shares of a text's
    pieces, in place.
    """
    if isinstance(model.head, Head):
        # on the CPU, as the text is
        counts = torch.bincount(text, minlength=model.vocab_size).double() + 1
        model.head.bias.data.copy_((counts / counts.sum()).log())
    return model


def start(config: dict, device: torch.device | str = "cpu") -> tuple[MaskedLM, list[float]]:
    """The common starting point of all arms, and its course of pretraining: from its file, or
    trained and written.

    A model with a masked-LM head of its own is taken as it is.
    """
    model = untrained(config["model"], config["tasks"]).to(device)
    if not isinstance(model.head, Head):
        return model, []
    from safetensors.torch import load_file, save

    plan = config["pretrain"]
    known = config["tasks"] if config["model"] == "tiny" else []  # whose words it knows
    made = [config["model"], plan, *known]
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
    # a copy, as Module.to moves it for good
    return fit([ids for ids, _ in encoded], copy.deepcopy(large))


@functools.lru_cache(maxsize=1)
def _large(model: str, names: tuple[str, ...], pieces: int) -> KneserNeyBigram:
    """WikiText-2's bigram, which takes a tenth of a unit's time, and is the same for all units."""
    known = untrained(model, names)
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
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return [found[i] for i in order.tolist()]
