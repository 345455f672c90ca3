"""Training a language model with a term: truncated backpropagation, SGD, decay on validation loss,
checkpoints.

The loss of a block is summed over its words in time and averaged over its columns, as in the
published programs, so that their learning rates and clips keep their meaning.
"""

import contextlib
import copy
import dataclasses
import math
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imm_lib import checks, data
from imm_lib.clipping import add_clipped
from imm_lib.experiments.language.measures import label_log_probs, perplexity
from imm_lib.experiments.language.models import LSTM, MODELS, LanguageModel, Transformer
from imm_lib.experiments.language.terms import Term
from imm_lib.experiments.language.text import Block, Stream
from imm_lib.experiments.options import one_of
from imm_lib.experiments.progress import bar
from imm_lib.experiments.resume import Checkpoint


class Diverged(RuntimeError):
    """The loss became NaN or infinite; the message says where. The checkpoint of the last whole
    epoch is kept.
    """


WAYS: dict[str, tuple[bool, str]] = {
    "float32": (False, ""),
    "bfloat16": (True, ""),
    "bfloat16, compiled": (True, "default"),
    "bfloat16, compiled with CUDA graphs": (True, "reduce-overhead"),
}
"""In what a run computes, from the plainest on: whether in bfloat16, on CUDA, and the mode of
torch.compile for what a step calls of the model, "" for none. It changes rounding and time only.
"""
WAY: ContextVar[str] = ContextVar("way of the trainings that begin", default="bfloat16")


@contextlib.contextmanager
def way(name: str) -> Iterator[None]:
    """Trainings that begin in this block compute in this one of WAYS."""
    token = WAY.set(name)
    try:
        yield
    finally:
        WAY.reset(token)


OPTIMISERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is built and trained.

    Attributes:
        model: "lstm" or "transformer".
        width: units or features.
        layers: of LSTM cells or attention blocks.
        dropout: share dropped between layers.
        scale: an LSTM's weights begin uniform in [-scale, scale].
        window: words of the past that a transformer carries over.
        batch: columns of text.
        unroll: words of a block.
        optimiser: "sgd", as in the paper, or "adam".
        lr: learning rate at first.
        decay: factor by which the learning rate falls.
        falls: epochs after which it does; by default those that did not lower the validation loss.
        least_lr: training ends when the rate falls below lr times this.
        clip: largest norm of the gradient.
        epochs: the most passes over the text.
        start: epochs before the term acts.
        start_lr: share of the first learning rate that the rate must have reached before the term
        acts.
        every: blocks of which the term acts on the first, with a weight that makes up for it.
        clip_apart: whether the term's gradient is clipped apart from the cross-entropy's, in a
            shared pass at the price of a second backward pass; by default where the term makes
            passes of its own.
        seed: of weights and dropout.
    """

    model: str = "lstm"
    width: int = 200
    layers: int = 2
    dropout: float = 0.3
    scale: float = 0.1
    window: int = 35
    batch: int = 20
    unroll: int = 35
    optimiser: str = "sgd"
    lr: float = 1.0
    decay: float = 0.5
    falls: Sequence[int] | None = None
    least_lr: float = 0.01
    clip: float = 5.0
    epochs: int = 40
    start: int = 0
    start_lr: float = 1.0
    every: int = 1
    clip_apart: bool | None = None
    seed: int = 0

    def __post_init__(self):
        one_of("model", self.model, MODELS)
        one_of("optimiser", self.optimiser, OPTIMISERS)
        for name in ("epochs", "every"):
            checks.count(name, getattr(self, name))
        for name in ("lr", "clip", "scale"):
            checks.number(name, getattr(self, name), 0, open_low=True)
        for name in ("decay", "least_lr", "start_lr"):
            checks.number(name, getattr(self, name), 0, 1, open_low=True)
        for epoch in self.falls or ():
            checks.count("falls", epoch)
        checks.number("start", self.start, 0)

    def build(self, vocab_size: int) -> LanguageModel:
        """A new model, its weights drawn from torch's default generator."""
        shape = vocab_size, self.width, self.layers, self.dropout
        if self.model == "lstm":
            return LSTM(*shape, self.scale)
        return Transformer(*shape, window=self.window, longest=self.unroll)


@dataclasses.dataclass
class Trained:
    """A model with the weights of its best epoch, and the course of its training, one entry per
    epoch.
    """

    model: LanguageModel
    history: list[dict]
    last: LanguageModel


def _add_gradients(
    model: nn.Module,
    loss: Tensor,
    shared: Tensor | None,
    parts: Iterable[Tensor],
    lam: float,
    settings: Settings,
) -> None:
    """Clipped gradients of loss + lam (shared + parts) into .grad; a term has one of the two."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not (shared is None if settings.clip_apart is None else settings.clip_apart):
        (loss if shared is None else loss + lam * shared).backward()
        for part in parts:
            (lam * part).backward()
        nn.utils.clip_grad_norm_(parameters, settings.clip)
        return

    def term():
        for part in parts if shared is None else [shared]:
            part.backward()

    primary = partial(loss.backward, retain_graph=shared is not None)
    add_clipped(primary, parameters, settings.clip)
    add_clipped(term, parameters, settings.clip, lam)


def _description(term: Term) -> str:
    """The term and all that it is made of, with every plain setting."""
    found = []
    for module in term.modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}
        for state in ("training", "checked"):  # no settings
            plain.pop(state, None)
        found.append(f"{type(module).__name__} {plain}")
    return "; ".join(found)


class Run:
    """A training run: all that a checkpoint holds, and how an epoch changes it."""

    def __init__(self, texts: data.Corpus, term: Term, settings: Settings):
        self.settings, self.device = settings, texts.train.device
        self.half, compiled = WAYS[WAY.get()]
        for split in ("train", "valid"):
            checks.ids(f"texts.{split}", getattr(texts, split), len(texts.vocab))
        self.train = Stream(texts.train, settings.batch, settings.unroll)
        self.valid = Stream(texts.valid, settings.batch, settings.unroll)
        self.model = settings.build(len(texts.vocab)).to(self.device)
        # not kept in the model, whose copies would call this one's
        self.hidden, self.log_probs = self.model.hidden, self.model.log_probs
        if compiled:
            self.hidden = torch.compile(self.hidden, mode=compiled)
            self.log_probs = torch.compile(self.log_probs, mode=compiled)
        self.best, self.term = copy.deepcopy(self.model), term.to(self.device)
        self.optimiser = OPTIMISERS[settings.optimiser](self.model.parameters(), settings.lr)
        self.lr, self.acted = settings.lr, 0  # blocks in which the term has acted
        self.history: list[dict] = []
        self.identity = {
            **dataclasses.asdict(settings),
            "vocabulary": len(texts.vocab),
            "text": zlib.crc32(texts.train.cpu().numpy().tobytes()),
            "term": _description(term),
        }
        del self.identity["epochs"]  # a run can be gone on with

    @property
    def progress(self) -> dict:
        """Its course so far, by attribute."""
        return {"lr": self.lr, "acted": self.acted, "history": self.history}

    @property
    def over(self) -> bool:
        """Whether the last epoch, or the least learning rate, has been reached."""
        settings = self.settings
        return len(self.history) >= settings.epochs or self.lr < settings.lr * settings.least_lr

    def epoch(self) -> None:
        """One pass over the training text, and its validation."""
        settings = self.settings
        start, cpu = time.perf_counter(), time.process_time()
        late = len(self.history) >= settings.start and self.lr <= settings.start_lr * settings.lr
        if late:
            self.term.begin_epoch(self.model, self.train, self.acted == 0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr
        state, total = self.model.train().begin(settings.batch), 0.0
        for number, block in enumerate(self.train):
            self.optimiser.zero_grad(set_to_none=True)
            value, state = self.step(block, state, number, late)
            if not math.isfinite(value):
                raise Diverged(f"the loss is {value} at {self._where(number)}")
            self.optimiser.step()
            total += value * block.words.numel()
        valid = perplexity(label_log_probs(self.model, self.valid))
        if not math.isfinite(valid):
            raise Diverged(f"the validation loss is NaN after {self._where(len(self.train) - 1)}")
        better = valid < min((entry["valid"] for entry in self.history), default=math.inf)
        if better:
            self.best.load_state_dict(self.model.state_dict())
        entry = {
            "train": perplexity(torch.tensor(-total / len(self.train.words))),
            "valid": valid,
            "lr": self.lr,
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - start,
            "term": late,
        }
        self.history.append(entry)
        falls = not better if settings.falls is None else len(self.history) in settings.falls
        if falls:
            self.lr *= settings.decay

    def step(self, block: Block, state: Tensor, number: int, late: bool) -> tuple[float, Tensor]:
        """Gradients of a block into ``.grad``; the mean cross-entropy in nats, and the state after
        the block.

        Where it is not finite, the gradients are not computed.
        """
        settings, length = self.settings, block.words.shape[1]
        labels = self.term.labels(block) if late else block.labels
        acts = late and number % settings.every == 0
        half, lam = self.half and self.device.type == "cuda", self.term.lam * settings.every
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            features, state = self.hidden(block.words, state)
            joint = self.term.joint(self.model, features, block, lam) if acts else None
            log_q, shared = None, None
            if joint is not None:
                loss, entropy = joint
            else:
                log_q = self.log_probs(features)
                loss = entropy = F.nll_loss(log_q.flatten(0, 1), labels.flatten())
            value = entropy.item()
            if not math.isfinite(value):
                return value, state
            if log_q is not None and acts:
                shared = self.term.shared(log_q, block)
                shared = None if shared is None else length * shared
            del log_q  # or it would still be there during the term's own passes
            own = self.term.own(self.model, block) if acts else ()
            parts = (length * part for part in own)
            _add_gradients(self.model, length * loss, shared, parts, lam, settings)
        self.acted += acts
        # a copy, as a CUDA graph writes what it returns anew at each call
        return value, state.detach().clone()

    def _where(self, number: int) -> str:
        return (
            f"step {number + 1} of epoch {len(self.history) + 1}: lower lr ({self.lr:g}), or let "
            "the term start later; the last whole epoch's checkpoint is kept"
        )


def train(
    texts: data.Corpus,
    term: Term | None = None,
    settings: Settings | None = None,
    checkpoint: Path | None = None,
) -> Trained:
    """Train a language model on ``texts.train``; the learning rate follows ``texts.valid``.

    Args:
        texts: token streams and their vocabulary; where they are, the model is trained, on CUDA in
            bfloat16 autocast.
        term: what is added to the cross-entropy; nothing by default. It is changed by the training.
        settings: of the model and its training.
        checkpoint: file to write after every epoch, and to go on from if it is there: bit by bit
            what an uninterrupted run would have done, on the same machine.

    Returns:
        The model with its best epoch's weights and with its last, and the course of the training.

    Raises:
        ValueError: bad settings, words outside the vocabulary, a text that is empty or shorter than
            one batch, or a checkpoint of another run.
        Diverged: the loss became NaN or infinite.
    """
    settings, device = settings or Settings(), texts.train.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        run = Run(texts, term or Term(), settings)
        parts = run.model, run.best, run.term, run.optimiser
        kept = Checkpoint(checkpoint, run.identity, parts, device)
        vars(run).update(kept.read() or {})
        with bar(
            total=settings.epochs, initial=len(run.history), unit="epoch", leave=False, disable=None
        ) as progress:
            while not run.over:
                run.epoch()
                kept.write(run.progress)
                progress.update()
                progress.set_postfix(valid=f"{run.history[-1]['valid']:.1f}", lr=f"{run.lr:g}")
    return Trained(run.best.eval(), run.history, run.model.eval())
