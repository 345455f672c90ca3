"""Language models behind one interface: an LSTM and a small causal transformer, whose state is a
tensor.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from imm_lib import checks


class LanguageModel(nn.Module):
    """Embedding, something that reads, dropout, softmax; ``symbols`` are ids beyond the vocabulary,
    no words.
    """

    def __init__(self, vocab_size: int, width: int, dropout: float, symbols: int = 0):
        super().__init__()
        self.embedding = nn.Embedding(
            checks.count("vocab_size", vocab_size) + symbols, checks.count("width", width)
        )
        self.head = nn.Linear(width, vocab_size)
        self.vocab_size, self.width = vocab_size, width
        self.dropout = nn.Dropout(checks.number("dropout", dropout, 0, 1))

    def begin(self, batch: int) -> Tensor:
        """(B, ...) the state before any word."""
        raise NotImplementedError

    def hidden(self, words: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) words, (B, ...) state -> (B, T, H) features, (B, ...) state after the last
        word.
        """
        raise NotImplementedError

    def states(self, words: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) words, (B, ...) state -> (B, T, ...) the state before each word, from which its
        history can be taken up again, (B, ...) the one after the last.
        """
        raise NotImplementedError

    @property
    def last_layer(self) -> tuple[Tensor, Tensor]:
        """(V, H) weight and (V,) bias of the logits."""
        return self.head.weight, self.head.bias

    def log_probs(self, features: Tensor) -> Tensor:
        """(..., H) features -> (..., V) log-probabilities in float32 or better."""
        logits = F.linear(features, *self.last_layer)
        return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)

    def forward(self, words: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) words, (B, ...) state -> (B, T, V) log-probabilities of the next words, (B, ...)
        state.
        """
        features, state = self.hidden(words, state)
        return self.log_probs(features), state


class LSTM(LanguageModel):
    """The paper's topology: embedding, LSTM layers of the same width, softmax, with dropout between
    (Zaremba et al.).

    The state is (B, layers, 2, H): what each layer put out and its cells. The arguments are those
    of :class:`Settings`.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int = 200,
        layers: int = 2,
        dropout: float = 0.0,
        scale: float = 0.1,
    ):
        super().__init__(vocab_size, width, dropout)
        self.lstms = nn.ModuleList(
            nn.LSTM(width, width, batch_first=True) for _ in range(checks.count("layers", layers))
        )
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -scale, scale)

    @override
    def begin(self, batch: int) -> Tensor:
        return self.head.weight.new_zeros(batch, len(self.lstms), 2, self.width)

    @override
    def hidden(self, words: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        features, after = self.dropout(self.embedding(words)), []
        for lstm, before in zip(self.lstms, state.unbind(1), strict=True):
            features, last = lstm(features, tuple(before.transpose(0, 1).unsqueeze(1).contiguous()))
            features = self.dropout(features)
            after.append(torch.cat(last).transpose(0, 1))
        return features, torch.stack(after, 1)

    @override
    def states(self, words: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        # the fused kernel returns every output but only the last cells: these follow from the
        # outputs, whose gates are one product for all words at once
        features, found, after = self.dropout(self.embedding(words)), [], []
        for lstm, (output, cell) in zip(
            self.lstms, state.transpose(0, 1).transpose(1, 2), strict=True
        ):
            outputs, _ = lstm(
                features, (output.unsqueeze(0).contiguous(), cell.unsqueeze(0).contiguous())
            )
            before = torch.cat([output.unsqueeze(1), outputs[:, :-1]], 1)
            w_in, w_out, b_in, b_out = lstm.parameters()
            gates = F.linear(features, w_in, b_in)
            i, f, g, _ = (gates + F.linear(before, w_out, b_out)).chunk(4, -1)
            added, kept, cells = i.sigmoid() * g.tanh(), f.sigmoid(), [cell]
            for step in range(words.shape[1]):
                cells.append(kept[:, step] * cells[-1] + added[:, step])
            found.append(torch.stack([before, torch.stack(cells[:-1], 1)], 2))
            after.append(torch.stack([outputs[:, -1], cells[-1]], 1))
            features = self.dropout(outputs)
        return torch.stack(found, 2), torch.stack(after, 1)


class Transformer(LanguageModel):
    """A small causal transformer. Its state is (B, window): the ids of the words before, the start
    symbol V at first.

    Args:
        vocab_size, width, layers, dropout, window: of :class:`Settings`.
        heads: of the attention; they divide ``width``.
        longest: the most words of one call; with the window, the number of places that have an
            embedding.

    Raises:
        ValueError: a number out of range; when called, more than ``longest`` words.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int = 200,
        layers: int = 2,
        dropout: float = 0.0,
        heads: int = 4,
        window: int = 35,
        longest: int = 70,
    ):
        super().__init__(vocab_size, width, dropout, symbols=1)
        if width % checks.count("heads", heads):
            raise ValueError(f"heads must divide width = {width}, got {heads}")
        self.window, self.longest = checks.count("window", window), checks.count("longest", longest)
        self.place = nn.Embedding(window + longest, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            layer, checks.count("layers", layers), nn.LayerNorm(width), enable_nested_tensor=False
        )
        for weight in (self.embedding.weight, self.place.weight):
            nn.init.normal_(weight, std=0.02)

    @override
    def begin(self, batch: int) -> Tensor:
        return torch.full((batch, self.window), self.vocab_size, device=self.head.weight.device)

    @override
    def hidden(self, words: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if words.shape[1] > self.longest:
            raise ValueError(
                f"words must be at most longest = {self.longest} a call, got {words.shape[1]}"
            )
        read = torch.cat([state, words], 1)
        places = torch.arange(read.shape[1], device=read.device)
        mask = nn.Transformer.generate_square_subsequent_mask(
            len(places), device=read.device, dtype=self.head.weight.dtype
        )
        features = self.blocks(
            self.dropout(self.embedding(read) + self.place(places)), mask=mask, is_causal=True
        )
        return features[:, self.window :], read[:, -self.window :]

    @override
    def states(self, words: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        read = torch.cat([state, words], 1)
        return read.unfold(1, self.window, 1)[:, : words.shape[1]], read[:, -self.window :]


MODELS = {"lstm": LSTM, "transformer": Transformer}
