"""Fine-tuning an encoder on a task with masked words and a causal term, and pretraining its
head.
"""

import dataclasses
import math
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imm_lib import checks
from imm_lib.clipping import add_clipped
from imm_lib.experiments.masked import tasks
from imm_lib.experiments.masked.encoder import MaskedLM, Sequences, by_length
from imm_lib.experiments.masked.prefixes import Prefixes
from imm_lib.experiments.masked.scores import score
from imm_lib.experiments.masked.target import Restricted
from imm_lib.experiments.masked.tasks import Example
from imm_lib.experiments.masked.terms import ARMS, Causal, masked_words
from imm_lib.experiments.options import one_of
from imm_lib.experiments.resume import Checkpoint, identity


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a task is learned.

    Attributes:
        arm: of ARMS.
        epochs: passes over the training examples.
        batch: examples of a step.
        lr: largest learning rate of AdamW; it rises over a tenth of the steps and falls to 0.
        mlm: weight of the masked-word loss.
        lam: λ.
        k: extended contexts of a word.
        places: of a step at which the causal term is taken; 0 takes one of each sequence.
        clip: largest norm of the gradient, of the causal term's apart.
        seed: of the classifier, the order, masks and dropout; equal for all arms. (Without masked
            words a step has one pass less, so that *base* draws other dropout than the others from
            the second step on.)
    """

    arm: str = "base"
    epochs: int = 3
    batch: int = 32
    lr: float = 5e-5
    mlm: float = 0.1
    lam: float = 0.1
    k: int = 5
    places: int = 4
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self):
        one_of("arm", self.arm, ARMS)
        for name in ("epochs", "batch", "k"):
            checks.count(name, getattr(self, name))
        for name in ("lr", "clip"):
            checks.number(name, getattr(self, name), 0, open_low=True)
        for name in ("mlm", "lam", "places"):
            checks.number(name, getattr(self, name), 0)


class Run:
    """One fine-tuning run: all that a checkpoint holds.

    Args:
        model: the common starting point; it is copied.
        name: of the task.
        train: its training examples.
        target: the restricted model; not needed by the arms "base" and "MLM".
        settings: see :class:`Settings`.
    """

    def __init__(
        self,
        model: MaskedLM,
        name: str,
        train: list[Example],
        target: Restricted | None,
        settings: Settings,
    ):
        self.name, self.settings = name, settings
        self.identity = {
            **dataclasses.asdict(settings),
            "task": name,
            "train": identity(train),
            "shapes": identity([parameter.shape for parameter in model.parameters()]),
        }
        self.model = model.for_task(len(tasks.TASKS[name].labels))
        self.sequences = self.model.encode(train)
        self.label = torch.tensor([example.label for example in train])
        seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(settings.seed))
        # one for each use, so that an arm that draws no masks, or no contexts, sees the same
        # batches as the others
        self.sources = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        self.order, self.masks, self.draws = self.sources
        self.causal = None
        if settings.arm not in ("base", "MLM"):
            if target is None:
                raise ValueError(f"target must be given for the arm {settings.arm!r}, got None")
            device = next(self.model.parameters()).device
            prefixes = Prefixes(self.sequences, self.model).to(device)
            self.causal = Causal(
                settings.arm, target.to(device), prefixes, settings.k, settings.places, self.draws
            )
        self.steps = settings.epochs * -(-len(train) // settings.batch)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), settings.lr, weight_decay=0.01, fused=True
        )
        warm = max(1, self.steps // 10)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda s: min((s + 1) / warm, (self.steps - s) / max(1, self.steps - warm)),
        )
        self.history: list[dict] = []

    def epoch(self) -> None:
        """One pass over the training examples."""
        self.model.train()
        start, cpu = time.perf_counter(), time.process_time()
        steps = [self.step(batch) for batch in self._batches()]
        entry = {key: statistics.fmean(step[key] for step in steps) for key in steps[0]}
        entry |= {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
        self.history.append(entry | {"steps": len(steps)})

    def _batches(self) -> list[Tensor]:
        """The examples in random batches of similar lengths, so that half as much is padded; in
        random order.
        """
        from transformers.trainer_pt_utils import get_length_grouped_indices

        lengths = [len(ids) for ids, _ in self.sequences]
        order = get_length_grouped_indices(lengths, self.settings.batch, generator=self.order)
        parts = torch.tensor(order).split(self.settings.batch)
        return [parts[i] for i in torch.randperm(len(parts), generator=self.order).tolist()]

    def step(self, numbers: Tensor) -> dict[str, float]:
        """One step on the examples of these numbers; losses in nats and norms of gradients, by
        term.
        """
        settings = self.settings
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        batch = self.model.batch([self.sequences[i] for i in numbers.tolist()])
        found: dict[str, float] = {}

        def add(name: str, loss: Tensor, clip: float = math.inf, weight: float = 1.0) -> None:
            size = add_clipped(loss.backward, parameters, clip, weight)
            found[f"norm {name}"], found[name] = size.item(), loss.item()

        def supervised() -> None:
            label = self.label[numbers].to(batch.ids.device)
            add("task", F.nll_loss(self.model.classify(batch), label))
            if settings.arm != "base":
                add("MLM", masked_words(self.model, batch, self.masks), weight=settings.mlm)

        self.optimiser.zero_grad()
        add_clipped(supervised, parameters, settings.clip)
        if self.causal is not None:
            add("causal", self.causal(self.model, numbers), settings.clip, settings.lam)
        if not all(math.isfinite(value) for value in found.values()):
            raise FloatingPointError(
                f"a loss is not finite in epoch {len(self.history) + 1}: {found}; lower lr or lam"
            )
        self.optimiser.step()
        self.schedule.step()
        return found


@torch.no_grad()
def predict(model: MaskedLM, examples: list[Example], batch: int = 64) -> Tensor:
    """(N, C) log-probabilities of the labels of each example."""
    model.eval()
    sequences = model.encode(examples)
    found = torch.empty(len(sequences), model.classifier.out_features)
    for part in by_length(sequences, batch):
        found[part] = model.classify(model.batch([sequences[i] for i in part.tolist()])).cpu()
    return found


def fine_tune(
    model: MaskedLM,
    name: str,
    train: list[Example],
    dev: list[Example],
    target: Restricted | None = None,
    settings: Settings | None = None,
    checkpoint: Path | None = None,
) -> dict:
    """Learn a task; every epoch's losses and norms, the dev scores at the end, and the model.

    Args:
        model: the common starting point of all arms; it is not changed.
        name: of the task.
        train, dev: its examples.
        target: the restricted model.
        settings: see :class:`Settings`.
        checkpoint: file to write after every epoch and to go on from if it is there; one file for
            one start and target.

    Raises:
        ValueError: bad settings, an unknown task, an example that is empty or too long, or a
            checkpoint of another task, settings, examples or size of model.
        FloatingPointError: a loss became NaN or infinite.
    """
    settings = settings or Settings()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        run = Run(model, name, train, target, settings)
        parts = run.model, run.optimiser, run.schedule
        device = next(run.model.parameters()).device
        kept = Checkpoint(checkpoint, run.identity, parts, device, run.sources)
        run.history = kept.read() or []
        while len(run.history) < settings.epochs:
            run.epoch()
            kept.write(run.history)
    label = torch.tensor([example.label for example in dev])
    return {
        "scores": score(name, predict(run.model, dev), label),
        "history": run.history,
        "model": run.model,
    }


def pretrain(
    model: MaskedLM,
    sequences: Sequences,
    settings: Settings,
    checkpoint: Path | None = None,
    every: int = 25,
) -> list[float]:
    """Train a model, in place, to name masked words; the loss of each step in nats.

    Args:
        model: encoder and head.
        sequences: its text.
        settings: of which batch, lr, epochs, clip and seed are used.
        checkpoint: file to write after every so many steps, and to go on from if it is there.
        every: how many.

    Raises:
        ValueError: a checkpoint of other settings or another text.
    """
    checks.count("every", every)
    generator = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=0.01)
    order = [torch.randperm(len(sequences), generator=generator) for _ in range(settings.epochs)]
    parts = [part for epoch in order for part in epoch.split(settings.batch)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.lr, len(parts), pct_start=0.1
    )
    kept = Checkpoint(
        checkpoint,
        {**dataclasses.asdict(settings), "text": identity([ids.tolist() for ids, _ in sequences])},
        (model, optimiser, schedule),
        next(model.parameters()).device,
        [generator],
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        losses = kept.read() or []
        model.train()
        for part in parts[len(losses) :]:
            loss = masked_words(
                model, model.batch([sequences[i] for i in part.tolist()]), generator
            )
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % every == 0:
                kept.write(losses)
    return losses
