"""The causal view of a masked language model: every place of a text, with the word there and all
later ones masked.

The short context of a place is the word before it, its extended context the whole prefix. A place
is named by its number in the text, all sequences one after another.
"""

import torch
from torch import Tensor, nn

from imm_lib.contexts import GroupedContexts
from imm_lib.estimators import Query
from imm_lib.experiments.masked.encoder import MaskedLM, Sequences, by_length
from imm_lib.experiments.masked.target import pairs

PASS = 32
"""Sequences that are run at a time."""


class Prefixes(nn.Module):
    """The places of a text, and what a model answers there.

    Args:
        sequences: (ids, segments) of each sequence, as of :meth:`MaskedLM.encode`.
        model: of which the mask and the vocabulary are taken; it is not kept.

    Attributes:
        contexts: extended contexts by the word before; a GroupedContexts.
        short: (P,) the word before each place.
        label: (P,) the word at it.
        first: (M + 1,) the first place of each sequence.

    Raises:
        ValueError: no sequence, or one without a word.
    """

    first: Tensor
    short: Tensor
    label: Tensor

    def __init__(self, sequences: Sequences, model: MaskedLM):
        super().__init__()
        self.mask_id = model.tokenizer.mask_token_id
        if not sequences or min(len(ids) for ids, _ in sequences) < 3:
            raise ValueError(
                "sequences must hold at least one word each between the first and the last token"
            )
        self.sequences = sequences
        # the places of a sequence: every piece but the first and the last
        sizes = torch.tensor([len(ids) - 2 for ids, _ in sequences])
        first = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        short, label = pairs([ids for ids, _ in sequences])
        for name, value in (("first", first), ("short", short), ("label", label)):
            self.register_buffer(name, value, persistent=False)
        self.contexts = GroupedContexts(self.short, model.vocab_size)

    def of(self, sequences: Tensor) -> Tensor:
        """(B,) numbers of sequences -> all of their places."""
        parts = [
            torch.arange(int(self.first[i]), int(self.first[i + 1]), device=self.first.device)
            for i in sequences.tolist()
        ]
        return torch.cat(parts)

    def masked(self, place: int) -> tuple[Tensor, Tensor, int]:
        """The sequence of a place with the piece there and all later ones masked, but the last; and
        where it stands.

        Segments would tell where a second sentence begins: those of masked pieces go on as the last
        known one's.
        """
        number = int(torch.searchsorted(self.first, place, right=True)) - 1
        ids, segment = self.sequences[number]
        position = place - int(self.first[number]) + 1
        ids, segment = ids.clone(), segment.clone()
        ids[position:-1], segment[position:] = self.mask_id, segment[position - 1]
        return ids, segment, position

    def log_q(self, model: MaskedLM, places: Tensor) -> Tensor:
        """(N,) places -> (N, V) log Q(word | prefix)."""
        found = [self.masked(place) for place in places.tolist()]
        sequences = [(ids, segment) for ids, segment, _ in found]
        positions = torch.tensor([position for *_, position in found])
        answers, parts = [], by_length(sequences, PASS)
        for part in parts:
            features = model.features(model.batch([sequences[i] for i in part.tolist()]))
            at = positions[part].to(features.device)
            row = torch.arange(len(part), device=features.device)
            answers.append(model.log_probs(features[row, at]))
        back = torch.cat(parts).argsort()
        return torch.cat(answers)[back.to(answers[0].device)]

    def query(self, model: MaskedLM) -> Query:
        """What estimators call: (N,) words, (N,) places -> (N, V)."""
        return lambda short, extended: self.log_q(model, extended)
