"""Engines in which people train, and estimators: each pair is right, or refused in one sentence.

``python tests/engines/cells.py`` writes the table of chapter 10; a test compares it.
"""

import functools
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import ranks
import torch
from ranks import LABEL, SHORT, TARGET, Fixed, Model, S, X, Y
from torch import nn
from torch.func import functional_call, grad
from torch.nn.functional import nll_loss
from torch.utils.checkpoint import checkpoint

import imm_lib as imm
from imm_lib.fused import FusedIMM

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "book" / "_includes" / "engines.md"
ESTIMATORS = {
    "exact": "`ExactIMM`",
    "sampled": "`SampledIMM`",
    "sequential": "`SampledIMM`, sequential",
    "serialized": "`SerializedIMM`",
    "moving average": "`MovingAverageIMM`",
    "fused": "`FusedIMM`",
}
BATCHES = torch.arange(11), torch.arange(5, 14), torch.arange(20, 33)


def make(name, dtype=torch.float64):
    contexts = Fixed(SHORT, S)
    term = {
        "exact": lambda: imm.ExactIMM(TARGET, contexts),
        "sampled": lambda: imm.SampledIMM(TARGET, contexts, 3),
        "sequential": lambda: imm.SampledIMM(TARGET, contexts, 3, sequential=True),
        "serialized": lambda: imm.SerializedIMM(TARGET, S, Y),
        "moving average": lambda: imm.MovingAverageIMM(TARGET, S, Y, 0.3),
        "fused": lambda: FusedIMM(TARGET, S, Y, 0.3),
    }[name]()
    return term.to(dtype)


class Task:
    """A model, a term and their loss on a batch of places."""

    def __init__(self, name, dtype=torch.float64):
        self.name, self.term, self.frozen = name, make(name, dtype), Model().to(dtype)
        self.model, self.x = Model().to(dtype), X.to(dtype)
        if name == "serialized":
            with torch.no_grad():
                self.term.refresh([(self.frozen(self.x), SHORT)])

    def loss(self, batch, model=None):
        """Cross-entropy and term, as the recipes have them."""
        model, x, short = model or self.model, self.x[batch], SHORT[batch]
        if self.name == "fused":
            return model(x, self.term, LABEL[batch], short)
        if self.name in ("exact", "sampled", "sequential"):
            term = self.term(lambda _, extended: model(self.x[extended]), short)
            return nll_loss(model(x), LABEL[batch]) + term
        log_q = model(x)
        if self.name == "serialized":
            with torch.no_grad():
                frozen = self.frozen(x)
            term = self.term(log_q, short, log_q_frozen=frozen)
        else:
            term = self.term(log_q, short)
        return nll_loss(log_q, LABEL[batch]) + term

    def train(self, loss=None, batches=BATCHES):
        """Steps of SGD; parameters and table afterwards."""
        loss, optimiser = loss or self.loss, torch.optim.SGD(self.model.parameters(), 0.3)
        for batch in batches:
            optimiser.zero_grad()
            loss(batch).backward()
            optimiser.step()
        return self.state()

    def state(self):
        table = self.term.table if hasattr(self.term, "table") else torch.zeros(0)
        return torch.cat([p.detach().flatten() for p in self.model.parameters()]), table


def same(found, wanted, tolerance=1e-12):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


@functools.lru_cache
def started(count):
    """What ``count`` processes that train together end with."""
    folder = Path(tempfile.mkdtemp())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "ranks.py"), *map(str, (rank, count)), *paths],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
        for paths in [(str(folder / "meet"), str(folder / "found"))]
    ]
    told = [process.communicate(timeout=600)[1] for process in processes]
    assert not any(process.returncode for process in processes), told
    return [torch.load(folder / f"found.{rank}", weights_only=False) for rank in range(count)]


def processes(name, engine):
    for found in started(2):
        if name == "sequential" and engine == "fsdp2":
            raise ValueError(found["sequential, shards"])
        if name == "sequential":
            same(found["sequential"][1:], ranks.sequential(lambda model: model, None)[1:])
        else:
            same(found[engine, name], ranks.run(name, lambda model: model))


def compiled(name, **options):
    torch._dynamo.reset()
    torch._logging.set_logs(all=logging.ERROR)
    task = Task(name)
    step = torch.compile(task.loss, backend="aot_eager", **options)
    same(task.train(step), Task(name).train())


def compiled_model(name):
    """The model alone is compiled, and the loss around it is not."""
    torch._dynamo.reset()
    task = Task(name)
    task.model.compile(backend="aot_eager")
    same(task.train(), Task(name).train())


def half(name):
    """bfloat16 against single precision, and a scaled loss against its own."""
    tasks = [Task(name, torch.float32) for _ in range(3)]
    grads = []
    for task, low, scale in zip(tasks, (False, True, True), (1.0, 1.0, 1024.0), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = task.loss(BATCHES[0])
        (scale * loss).backward()
        grads.append(torch.cat([p.grad.flatten() for p in task.model.parameters()]) / scale)
    assert (grads[1] - grads[0]).norm() < 0.03 * grads[0].norm()
    assert (grads[2] - grads[1]).norm() < 0.01 * grads[1].norm()
    if hasattr(task.term, "table"):
        assert task.term.table.dtype == torch.float32


def accumulated(name):
    """Micro-batches, each of whole short contexts, against the batch that they make."""
    order = SHORT[:20].sort(stable=True).indices
    parts = [order[SHORT[order] < 2], order[SHORT[order] >= 2]]
    whole, task = Task(name), Task(name)
    whole.loss(order).backward()
    for part in parts:
        (task.loss(part) * len(part) / len(order)).backward()
    grads = [[p.grad for p in t.model.parameters()] for t in (task, whole)]
    same(grads[0], grads[1])
    same(task.state(), whole.state())


def checkpointed(name):
    """Model and term run a second time in the backward pass; the table moves once."""
    task = Task(name)
    found = task.train(lambda batch: checkpoint(task.loss, batch, use_reentrant=False))
    same(found, Task(name).train())


def transformed(name):
    task, other = Task(name), Task(name)
    parameters = {key: p.detach() for key, p in task.model.named_parameters()}

    def loss(parameters):
        return task.loss(BATCHES[0], lambda *a: functional_call(task.model, parameters, a))

    found = grad(loss)(parameters)
    other.loss(BATCHES[0]).backward()
    same(found.values(), [p.grad for p in other.model.parameters()])


class Words(torch.utils.data.Dataset):
    """The places of the batches, one after another."""

    def __init__(self, places):
        self.places = places

    def __len__(self):
        return len(self.places)

    def __getitem__(self, place):
        place = self.places[place]
        return {"place": place, "labels": LABEL[place], "short": SHORT[place]}


class Classifier(nn.Module):
    """As transformers' models: a dictionary with loss and logits."""

    def __init__(self):
        super().__init__()
        self.model = Model()

    def forward(self, place, labels=None):
        logits = self.model(X[place])
        return {"loss": nll_loss(logits, labels), "logits": logits}


def hugging_face(name):
    import transformers

    from imm_lib.integrations.transformers import IMMTrainer

    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)

    class InOrder(IMMTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def query(model, short, extended):
        return model.model(X[extended])

    runs = name in ("exact", "sampled", "sequential")
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, report_to=[], use_cpu=True, save_strategy="no", max_steps=3,
            max_grad_norm=0.0, learning_rate=0.3, per_device_train_batch_size=11, optim="sgd",
            lr_scheduler_type="constant", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = InOrder(
            Classifier(), arguments, train_dataset=Words(torch.arange(33)), term=make(name),
            query=query if runs else None, short="short",
        )  # fmt: skip
        trainer.train()
    wanted = Task(name).train(batches=torch.arange(33).split(11))
    found = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    same([found], wanted[:1], 1e-6)  # the logits are taken in single precision


def accelerated(name):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    task = Task(name)
    optimiser = torch.optim.SGD(task.model.parameters(), 0.3)
    model, optimiser = accelerator.prepare(task.model, optimiser)
    accelerator.register_for_checkpointing(task.term)
    with tempfile.TemporaryDirectory() as folder:
        for step, batch in enumerate(BATCHES):
            optimiser.zero_grad()
            accelerator.backward(task.loss(batch, model))
            optimiser.step()
            if step == 0:
                accelerator.save_state(folder)
        found = task.state()
        same(found, Task(name).train())
        accelerator.load_state(folder)
        same(task.train(batches=BATCHES[1:]), Task(name).train())


def lightning(name):
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.task = task
            self.model, self.term = task.model, task.term

        def training_step(self, batch, _):
            return self.task.loss(batch, self.model)

        def configure_optimizers(self):
            return torch.optim.SGD(self.model.parameters(), 0.3)

    task = Task(name)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(Module(), torch.utils.data.DataLoader(torch.arange(33), batch_size=11))
    same(task.state(), Task(name).train(batches=torch.arange(33).split(11)))


def resumed(name):
    """Through state dictionaries, and through the meta device: the data are still there."""
    first, second = Task(name), Task(name)
    first.train(batches=BATCHES[:2])
    both = nn.ModuleList([second.model, second.term]).to_empty(device="cpu")
    for module in both.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    second.model.load_state_dict(first.model.state_dict())
    second.term.load_state_dict(first.term.state_dict())
    same(second.train(batches=BATCHES[2:]), Task(name).train())


ENGINES = {
    "DistributedDataParallel": (
        lambda name: processes(name, "ddp"),
        "`group=torch.distributed.group.WORLD`; `query` of a sequential term runs `model.module`",
    ),
    "FSDP2": (
        lambda name: processes(name, "fsdp2"),
        "the same; `FusedIMM` inside the sharded module's `forward`",
    ),
    "`torch.compile` of the model": (compiled_model, ""),
    "`torch.compile` of the step": (compiled, "`ExactIMM` and sequential terms break the graph"),
    "`fullgraph=True`": (
        lambda name: compiled(name, fullgraph=True),
        "what depends on the data's values is no graph",
    ),
    "autocast, `GradScaler`": (half, "tables stay in single precision"),
    "gradient accumulation": (
        accumulated,
        "momentum $1 - (1 - m)^{1/M}$ for $M$ micro-batches",
    ),
    "`torch.utils.checkpoint`": (checkpointed, "with `use_reentrant=False`"),
    "`torch.func`": (transformed, "a moving average in eval mode"),
    "Hugging Face `Trainer`": (
        hugging_face,
        "`imm_lib.integrations.transformers.IMMTrainer`; `FusedIMM` inside the model",
    ),
    "accelerate": (accelerated, "`accelerator.register_for_checkpointing(term)`"),
    "Lightning": (lightning, "the term is an attribute of the module"),
    "checkpoints, meta device": (resumed, "`state_dict`; `reset_parameters` after `to_empty`"),
}
LOUD = (ValueError, TypeError, RuntimeError, NotImplementedError)


def verdict(engine, name):
    """ "right", or "refused" with the first line of the error; AssertionError where it is wrong."""
    run, _ = ENGINES[engine]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run(name)
        except AssertionError:
            raise
        except LOUD as error:
            return "refused", str(error).strip().splitlines()[0]
    return "right", ""


def page(verdicts):
    head = ["engine", *ESTIMATORS.values(), "how"]
    rows = [
        [engine, *(verdicts[engine, name][0] for name in ESTIMATORS), note]
        for engine, (_, note) in ENGINES.items()
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("  |", " |") for line in lines)


if __name__ == "__main__":
    found = {}
    for engine in ENGINES:
        for name in ESTIMATORS:
            found[engine, name] = verdict(engine, name)
            print(engine, "|", name, "|", *found[engine, name], flush=True)
    PAGE.write_text(page(found), encoding="utf-8")
