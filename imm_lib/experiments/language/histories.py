"""Extended contexts of a text: the histories that end before each occurrence of a word, run again
when they are drawn.

An extended context is a place in the text. From it the model's answer costs ``steps`` words: they
are read either from the state that the model had before them on its last pass (``cache``), or from
the beginning state, their whole past forgotten, as in the published program.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from imm_lib import checks
from imm_lib.contexts import GroupedContexts
from imm_lib.estimators import Query
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.text import Block, Stream
from imm_lib.experiments.training import without_dropout


@torch.no_grad()
def read(
    model: LanguageModel, stream: Stream, states: bool = False
) -> Iterator[tuple[Block, Tensor]]:
    """One pass without dropout or gradients: each block, and its features or the states before its
    words. Between two blocks the caller's own gradient mode holds; the decorator restores it.
    """
    with without_dropout(model):
        state, step = model.begin(stream.batch), model.states if states else model.hidden
        for block in stream:
            found, state = step(block.words, state)
            yield block, found


class Histories(nn.Module):
    """Where the extended contexts of a text come from (``contexts``), and what the model answers
    there (``query``).

    Args:
        stream: the text.
        vocab_size: number V of words.
        steps: words m that are run again, the word itself among them, at least 1.
        cache: take up the state that the last :meth:`refresh` found before them; else begin anew.
        dtype: of the cached states.

    A history that begins before the text's first word is completed with the text's last words.

    Raises:
        TypeError, ValueError: a bad number.
        MemoryError: on refresh, a cache that does not fit; the message says how large it is and
            what to choose.
    """

    def __init__(
        self,
        stream: Stream,
        vocab_size: int,
        steps: int = 1,
        cache: bool = True,
        dtype: torch.dtype = torch.float16,
    ):
        super().__init__()
        self.stream, self.steps, self.cache = stream, checks.count("steps", steps), cache
        self.contexts = GroupedContexts(stream.words, vocab_size)
        self.dtype = dtype
        self.states: Tensor | None = None

    def refresh(self, model: LanguageModel) -> None:
        """Fill the cache by one pass over the text, without dropout and without the softmax."""
        if not self.cache:
            return
        words = self.contexts.short
        if self.states is None:
            one = model.begin(1)[0]
            dtype = self.dtype if one.is_floating_point() else one.dtype
            self._check_room(len(words) * one.numel() * dtype.itemsize, words.device)
            self.states = torch.empty(len(words), *one.shape, dtype=dtype, device=words.device)
        for block, found in read(model, self.stream.to(words.device), states=True):
            self.states[block.place.flatten()] = found.flatten(0, 1).to(self.states)

    def before(self, model: LanguageModel, place: Tensor) -> Tensor:
        """(N, ...) the cached states before the words at (N,) places, for the model to take up."""
        if self.states is None:
            raise RuntimeError("the cache is empty: call refresh first")
        return self.states[place].to(model.begin(1))

    def features(self, model: LanguageModel, state: Tensor | None = None) -> Query:
        """(N,) words, (N,) places -> (N, H) features, of the model as it is.

        With ``state``, (N, ...), every call begins from it, whatever text it comes from.
        """

        def run(short: Tensor, extended: Tensor) -> Tensor:
            behind = torch.arange(1 - self.steps, 1, device=extended.device)
            words = self.contexts.short
            places = (extended.unsqueeze(1) + behind) % len(words)
            if state is not None:
                before = state
            elif self.cache:
                before = self.before(model, places[:, 0])
            else:
                before = model.begin(len(short))
            return model.hidden(words[places], before)[0][:, -1]

        return run

    def query(self, model: LanguageModel, state: Tensor | None = None) -> Query:
        """What estimators call: the same, with (N, V) log-probabilities."""
        features = self.features(model, state)
        return lambda short, extended: model.log_probs(features(short, extended))

    def _check_room(self, size: int, device: torch.device) -> None:
        """Refuse a cache of more bytes than are free; without psutil a CPU's are not known."""
        try:
            import psutil
        except ImportError:
            free = math.inf
        else:
            free = psutil.virtual_memory().available
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        if size > free:
            raise MemoryError(
                f"cache must fit on {device}: {len(self.stream.words)} states take "
                f"{size / 1e9:.2f} GB in {str(self.dtype).removeprefix('torch.')}, "
                f"{free / 1e9:.2f} GB are free; choose dtype=torch.float16, fewer lines, or "
                "cache=False with more steps"
            )
