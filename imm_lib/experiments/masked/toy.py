"""A small language for demonstrations: a sentence is acceptable if its verb agrees with its noun in
number.
"""

import torch

from imm_lib.experiments.masked.encoder import MaskedLM
from imm_lib.experiments.masked.prefixes import Prefixes
from imm_lib.experiments.masked.tasks import Example

NOUNS, VERBS = ["cat", "dog", "king", "girl"], ["sleeps", "runs", "sings", "waits"]
ADVERBS = ["often", "never"]


def agreement(size: int, seed: int, only: int | None = None) -> list[Example]:
    """Sentences: determiner, noun, in half of them an adverb, verb.

    Args:
        size: how many; labels alternate.
        seed: of the words.
        only: one label for all.
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    found = []
    for i in range(size):
        label = i % 2 if only is None else only
        plural, adverb = (int(torch.randint(2, (), generator=generator)) for _ in range(2))
        words = [pick(["the", "some", "my"]), pick(NOUNS) + "s" * plural, *[pick(ADVERBS)] * adverb]
        verb = pick(VERBS)
        words.append(verb[:-1] if plural == label else verb)
        found.append(Example(" ".join(words), None, label))
    return found


@torch.no_grad()
def right_number(model: MaskedLM, prefixes: Prefixes) -> float:
    """After an adverb: which share of the probability of all verb forms the right number has. A
    bigram's is one half.

    Args:
        model: on whose prefixes it is measured; it is put into evaluation mode.
        prefixes: of acceptable sentences of :func:`agreement`.
    """
    ids = model.tokenizer.convert_tokens_to_ids
    words = (VERBS, [verb[:-1] for verb in VERBS], ADVERBS)
    where = prefixes.short.device
    singular, plural, adverbs = (torch.tensor(ids(kind), device=where) for kind in words)
    at = torch.isin(prefixes.short, adverbs).nonzero().flatten()
    q = prefixes.log_q(model.eval(), at).exp()
    mass = torch.stack([q[:, singular].sum(1), q[:, plural].sum(1)])
    right = torch.where(torch.isin(prefixes.label[at], singular), mass[0], mass[1])
    return (right / mass.sum(0)).mean().item()
