"""The losses of fine-tuning beside the task's: masked words as in pretraining, and what an arm adds
to them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imm_lib import checks
from imm_lib.baselines import SampledNoising
from imm_lib.estimators import SampledIMM
from imm_lib.experiments.masked.encoder import Batch, MaskedLM
from imm_lib.experiments.masked.prefixes import Prefixes
from imm_lib.experiments.masked.target import Restricted, unigram
from imm_lib.experiments.options import one_of
from imm_lib.experiments.training import without_dropout

ARMS = ("base", "MLM", "MLM + IMM", "MLM + noising", "MLM + unigram")
"""The task alone; with masked words; and with IMM, noising, or a control whose target ignores its
context.
"""

SHARE = 0.15
"""Of the word pieces that are chosen for the masked-word loss; of these .8 are masked, .1 replaced,
.1 kept.
"""


def masked_words(model: MaskedLM, batch: Batch, generator: torch.Generator) -> Tensor:
    """The masked-LM loss of BERT on a batch, mean over the chosen pieces, in nats; at least one
    piece is chosen.
    """
    special = torch.tensor(model.tokenizer.all_special_ids, device=batch.ids.device)
    words = batch.mask & ~torch.isin(batch.ids, special)
    draw = torch.rand(2, *batch.ids.shape, generator=generator).to(batch.ids.device)
    chosen = words & (draw[0] < SHARE)
    if not chosen.any():
        chosen.view(-1)[torch.where(words, draw[0], 2.0).argmin()] = True
    other = torch.randint(model.vocab_size, batch.ids.shape, generator=generator).to(
        batch.ids.device
    )
    ids = torch.where(chosen & (draw[1] < 0.8), model.tokenizer.mask_token_id, batch.ids)
    ids = torch.where(chosen & (draw[1] >= 0.9), other, ids)
    features = model.features(batch._replace(ids=ids))
    return F.nll_loss(model.log_probs(features[chosen]), batch.ids[chosen])


class Causal(nn.Module):
    """What an arm adds: a target against the model's causal view at places drawn from the batch,
    without dropout.

    Args:
        arm: of ARMS.
        target: the mixture of bigrams.
        prefixes: of the task's training text.
        k: extended contexts of a word.
        places: drawn for each step; 0 takes one of each of the batch's sequences.
        generator: source of the draws.

    Raises:
        ValueError: an arm without such a term.
    """

    def __init__(
        self,
        arm: str,
        target: Restricted,
        prefixes: Prefixes,
        k: int,
        places: int,
        generator: torch.Generator,
    ):
        super().__init__()
        one_of("arm", arm, ARMS[2:])
        kind = SampledNoising if arm == "MLM + noising" else SampledIMM
        goal: Callable[[Tensor], Tensor] = target
        if arm == "MLM + unigram":
            row = unigram(target, prefixes.short)
            goal = lambda short: row.expand(len(short), -1)  # noqa: E731
        self.estimator = kind(goal, prefixes.contexts, k, generator=generator)
        self.prefixes, self.generator = prefixes, generator
        self.places = places if places == 0 else checks.count("places", places)

    def forward(self, model: MaskedLM, sequences: Tensor) -> Tensor:
        """(B,) numbers of the batch's sequences -> the mean risk in nats."""
        if self.places:
            known = self.prefixes.of(sequences)
            which = torch.randint(len(known), (self.places,), generator=self.generator)
            drawn = known[which.to(known.device)]
        else:
            first, end = self.prefixes.first[sequences], self.prefixes.first[sequences + 1]
            share = torch.rand(len(sequences), generator=self.generator, dtype=torch.float64)
            drawn = first + (share.to(first.device) * (end - first)).long()
        with without_dropout(model):
            return self.estimator(self.prefixes.query(model), self.prefixes.short[drawn])
