"""Training with IMM in Hugging Face's Trainer, accelerate and Lightning."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, nll_loss
from torch.utils.data import DataLoader, Dataset

import imm_lib as imm

transformers = pytest.importorskip("transformers")

from imm_lib.fused import FusedIMM  # noqa: E402
from imm_lib.integrations.transformers import IMMTrainer  # noqa: E402

V = 11
TEXTS = 24


class Texts(Dataset):
    """Token rows of different lengths, padded with -100 labels, some with a masked prompt."""

    def __len__(self):
        return TEXTS

    def __getitem__(self, place):
        generator = torch.Generator().manual_seed(int(place))
        words = torch.randint(1, V, (8,), generator=generator)
        length = 4 + place % 5
        words[length:] = 0
        labels = words.clone()
        labels[length:] = -100
        labels[: place % 3] = -100
        mask = (torch.arange(8) < length).long()
        return {"input_ids": words, "attention_mask": mask, "labels": labels}


def gpt(seed=0, dropout=0.0):
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = (
        "ForCausalLM"  # or the Trainer counts the first label too, which has no logits
    )
    return model


def rows(seed=0):
    return torch.rand(V, V, generator=torch.Generator().manual_seed(seed)).softmax(1)


def arguments(folder, **kwargs):
    plain = {
        "output_dir": str(folder), "report_to": [], "use_cpu": True, "save_strategy": "no",
        "num_train_epochs": 1, "max_grad_norm": 0.0, "learning_rate": 1e-2, "seed": 3,
        "per_device_train_batch_size": 4, "disable_tqdm": True, "optim": "sgd",
        "lr_scheduler_type": "constant", "logging_strategy": "no",
    }  # fmt: skip
    return transformers.TrainingArguments(**(plain | kwargs))


def trained(folder, term, model=None, data=None, **kwargs):
    resume = kwargs.pop("resume", None)
    own = {key: kwargs.pop(key) for key in ("query", "short", "shift", "lam") if key in kwargs}
    trainer = IMMTrainer(
        gpt() if model is None else model,
        arguments(folder, **kwargs),
        train_dataset=Texts() if data is None else data,
        term=term,
        **own,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def by_hand(term, order, lam=1.0):
    """Plain SGD over batches of places, the loss written out over labelled positions."""
    model = gpt()
    optimiser = torch.optim.SGD(model.parameters(), 1e-2)
    data = Texts()
    for batch in order:
        cells = {key: torch.stack([data[i][key] for i in batch]) for key in data[0]}
        logits = model(input_ids=cells["input_ids"], attention_mask=cells["attention_mask"]).logits[
            :, :-1
        ]
        label, short = cells["labels"][:, 1:], cells["input_ids"][:, :-1]
        keep = label != -100
        log_q = logits[keep].log_softmax(-1)
        optimiser.zero_grad()
        (nll_loss(log_q, label[keep]) + lam * term(log_q, short[keep])).backward()
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class InOrder(IMMTrainer):
    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def in_order(folder, term, **kwargs):
    lam = kwargs.pop("lam", 1.0)
    trainer = InOrder(gpt(), arguments(folder, **kwargs), train_dataset=Texts(), term=term, lam=lam)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", ["moving average", "reverse distillation"])
def test_a_language_model_is_trained_as_by_hand(tmp_path, kind):
    def make():
        return (
            imm.MovingAverageIMM(rows(), V, V)
            if kind == "moving average"
            else imm.ReverseKD(rows())
        )

    term, other = make(), make()
    found = parameters(in_order(tmp_path, term, lam=0.7))
    places = torch.arange(TEXTS).split(4)
    torch.testing.assert_close(found, by_hand(other, places, lam=0.7), rtol=1e-5, atol=1e-7)
    for name, value in term.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], equal_nan=True)


def test_accumulation_is_one_large_batch(tmp_path):
    """Micro-batches of unequal numbers of positions, and λ is not multiplied by their number."""
    whole = in_order(tmp_path, imm.ReverseKD(rows()), per_device_train_batch_size=8)
    parts = in_order(
        tmp_path,
        imm.ReverseKD(rows()),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    torch.testing.assert_close(parameters(parts), parameters(whole), rtol=1e-5, atol=1e-7)


def test_the_average_moves_once_an_optimiser_step(tmp_path):
    """A word that every micro-batch holds: what was there before keeps 1 - momentum."""
    term = imm.MovingAverageIMM(rows(), V, V, momentum=0.3)
    with torch.no_grad():
        term.table.fill_(-5.0)
        term.visited.fill_(True)

    class Same(Texts):
        def __getitem__(self, place):
            return super().__getitem__(0)

    trainer = IMMTrainer(
        gpt(), arguments(tmp_path, gradient_accumulation_steps=4, learning_rate=0.0, max_steps=1),
        train_dataset=Same(), term=term,
    )  # fmt: skip
    trainer.train()
    cells = Texts()[0]
    log_q = trainer.model(cells["input_ids"][None]).logits[0].log_softmax(-1).detach()
    word = cells["input_ids"][0]
    mean = (
        log_q[:-1][(cells["input_ids"][:-1] == word) & (cells["labels"][1:] != -100)].exp().mean(0)
    )
    torch.testing.assert_close(term.table[word].exp(), 0.7 * torch.tensor(-5.0).exp() + 0.3 * mean)
    assert term.momentum == 0.3


def test_evaluation_reports_the_model_and_leaves_the_table(tmp_path):
    term = imm.MovingAverageIMM(rows(), V, V)
    trainer = IMMTrainer(
        gpt(), arguments(tmp_path, eval_strategy="epoch", per_device_eval_batch_size=24),
        train_dataset=Texts(), eval_dataset=Texts(), term=term,
    )  # fmt: skip
    trainer.train()
    before = copy.deepcopy(term.state_dict())
    found = trainer.evaluate()["eval_loss"]
    cells = {key: torch.stack([Texts()[i][key] for i in range(TEXTS)]) for key in Texts()[0]}
    logits = (
        trainer.model(input_ids=cells["input_ids"], attention_mask=cells["attention_mask"])
        .logits[:, :-1]
        .flatten(0, 1)
    )
    assert found == pytest.approx(
        cross_entropy(logits, cells["labels"][:, 1:].flatten()).item(), rel=1e-5
    )
    for name, value in term.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())


def test_a_resumed_run_is_an_unbroken_one(tmp_path):
    def make():
        return imm.MovingAverageIMM(rows(), V, V, momentum=0.2)

    kwargs = {"save_strategy": "epoch", "num_train_epochs": 2, "optim": "adamw_torch"}
    whole = trained(tmp_path / "whole", make(), gpt(dropout=0.1), **kwargs)
    (first,) = (tmp_path / "whole").glob("checkpoint-6")
    assert (first / "imm.pt").is_file() and not list(first.glob("*.part"))
    again = trained(tmp_path / "whole", make(), gpt(1, 0.1), resume=str(first), **kwargs)
    assert torch.equal(parameters(whole), parameters(again))
    assert torch.equal(whole.term.table.nan_to_num(), again.term.table.nan_to_num())
    _, told = transformers.GPT2LMHeadModel.from_pretrained(first, output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]
    (first / "imm.pt").write_bytes((first / "imm.pt").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"imm\.pt is damaged: "):
        trained(tmp_path / "whole", make(), resume=str(first), **kwargs)
    (first / "imm.pt").unlink()
    with pytest.raises(ValueError, match=r"imm\.pt is not there"):
        trained(tmp_path / "whole", make(), resume=str(first), **kwargs)


def test_the_log_tells_the_risk(tmp_path):
    term = imm.MovingAverageIMM(rows(), V, V)
    trainer = trained(tmp_path, term, logging_strategy="steps", logging_steps=6)
    told = trainer.state.log_history[0]
    assert told["imm_risk"] == pytest.approx(term.risk.item())
    plain = trained(
        tmp_path, imm.ReverseKD(rows()), logging_strategy="steps", logging_steps=6, lam=0.0
    )
    assert told["loss"] - plain.state.log_history[0]["loss"] == pytest.approx(
        told["imm_risk"], rel=0.1
    )


class Sentences(Dataset):
    """Classification; the short context is the first word."""

    def __len__(self):
        return TEXTS

    def __getitem__(self, place):
        words = torch.randint(1, V, (5,), generator=torch.Generator().manual_seed(int(place)))
        return {"input_ids": words, "labels": int(words[1]) % 3, "group": int(words[0]) % 2}


def bert(seed=0):
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=8, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(config)


def lent(model, short, extended):
    words = torch.stack([Sentences()[i]["input_ids"] for i in extended.tolist()])
    return model(input_ids=words).logits.log_softmax(-1)


def sampled(k=4, **kwargs):
    group = torch.tensor([item["group"] for item in map(Sentences().__getitem__, range(TEXTS))])
    rows = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.4, 0.1]])
    generator = torch.Generator().manual_seed(5)
    return imm.SampledIMM(rows, imm.GroupedContexts(group), k, generator=generator, **kwargs)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_classifier_with_a_query(tmp_path, accumulation):
    """The column of short contexts reaches the term and not the model."""
    trainer = InOrder(
        bert(), arguments(tmp_path, gradient_accumulation_steps=accumulation, max_steps=1),
        train_dataset=Sentences(), term=sampled(), lam=2.0, query=lent, short="group",
    )  # fmt: skip
    before, term = copy.deepcopy(trainer.model), sampled()
    trainer.train()
    for places in torch.arange(4 * accumulation).split(4):
        items = [Sentences()[i] for i in places.tolist()]
        words = torch.stack([item["input_ids"] for item in items])
        label, short = (torch.tensor([item[key] for item in items]) for key in ("labels", "group"))
        loss = cross_entropy(before(input_ids=words).logits, label)
        # this model takes the mean of a micro-batch, which the Trainer takes for a share of a sum
        (loss + 2.0 * term(lambda s, e: lent(before, s, e), short)).backward()
    for found, own in zip(trainer.model.parameters(), before.parameters(), strict=True):
        moved = own if own.grad is None else own - 1e-2 * own.grad
        torch.testing.assert_close(found, moved, rtol=1e-4, atol=1e-6)


def test_the_samples_go_on_where_they_were(tmp_path):
    kwargs = {"save_strategy": "epoch", "num_train_epochs": 2, "query": lent, "short": "group"}
    whole = trained(tmp_path, sampled(), bert(), Sentences(), **kwargs)
    first = str(tmp_path / "checkpoint-6")
    again = trained(tmp_path, sampled(), bert(1), Sentences(), resume=first, **kwargs)
    assert torch.equal(parameters(whole), parameters(again))
    with pytest.raises(RuntimeError, match="generator"):
        sampled().load_state_dict({})


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"term": rows()}, TypeError, "term must be an estimator"),
        ({"term": imm.SerializedIMM(rows(), V, V)}, TypeError, "take MovingAverageIMM"),
        ({"term": FusedIMM(rows(), V, V)}, TypeError, "the model's last layer"),
        ({"term": sampled()}, ValueError, "needs query"),
        ({"term": imm.ReverseKD(rows()), "query": lent}, ValueError, "and no query"),
        ({"term": imm.ReverseKD(rows()), "lam": -1.0}, ValueError, "lam must be"),
    ],
)
def test_the_trainer_refuses(tmp_path, kwargs, error, message):
    with pytest.raises(error, match=message):
        IMMTrainer(gpt(), arguments(tmp_path), train_dataset=Texts(), **kwargs)


def test_a_batch_without_what_the_term_needs(tmp_path):
    with pytest.raises(ValueError, match="hold 'pair', got attention_mask, input_ids, labels"):
        trained(tmp_path, imm.ReverseKD(rows()), short="pair")
    with pytest.raises(ValueError, match=r"logits must be \(4, Y\), as labels are"):
        bad = {"input_ids": torch.zeros(4, 8).long(), "labels": torch.zeros(4).long()}
        trainer = IMMTrainer(
            gpt(), arguments(tmp_path), train_dataset=Texts(), term=imm.ReverseKD(rows())
        )
        trainer._positions({"logits": torch.zeros(4, 8, V)}, bad["input_ids"], bad["labels"])
    with pytest.raises(ValueError, match="of a classifier, pass the name of a column"):
        trained(tmp_path, sampled(), bert(), Sentences(), query=lent)
    with pytest.raises(ValueError, match=r"short contexts must be \(4, 8\), as labels are"):
        trained(tmp_path, imm.ReverseKD(rows()), data=Short(), short="pair")


class Short(Texts):
    """With one short context a text, where each label needs one."""

    def __getitem__(self, place):
        return super().__getitem__(place) | {"pair": torch.tensor(0)}


class Net(nn.Module):
    """A model of numbered texts of one word: enough for a loop."""

    def __init__(self, dropout=0.2):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Embedding(V, 6), nn.Dropout(dropout), nn.Linear(6, V))

    def forward(self, words):
        return self.layers(words).log_softmax(-1)


def words(n=40):
    text = torch.randint(V, (n + 1,), generator=torch.Generator().manual_seed(1))
    return torch.utils.data.TensorDataset(text[:-1], text[1:])


def test_accelerate_resumes_and_accumulates(tmp_path):
    """The loop of the recipe: the term is registered, λ is that of one large batch."""
    accelerate = pytest.importorskip("accelerate")

    def run(epochs, resume=None, save=None):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, term = Net(), imm.MovingAverageIMM(rows(), V, V, momentum=0.3)
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        model, optimiser, batches = accelerator.prepare(
            model, optimiser, DataLoader(words(), batch_size=5)
        )
        accelerator.register_for_checkpointing(term)
        torch.manual_seed(0)
        if resume:
            accelerator.load_state(resume)
        for _ in range(epochs):
            for word, label in batches:
                with accelerator.accumulate(model):
                    log_q = model(word)
                    accelerator.backward(nll_loss(log_q, label) + term(log_q, word))
                    optimiser.step()
                    optimiser.zero_grad()
        if save:
            accelerator.save_state(save)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), term.table

    whole = run(2)
    run(1, save=str(tmp_path))
    again = run(1, resume=str(tmp_path))
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(whole, again, strict=True)
    )


def test_accelerate_divides_the_term_as_it_does_the_loss():
    accelerate = pytest.importorskip("accelerate")
    grads = []
    for parts in (1, 4):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=parts)
        model, term = accelerator.prepare(Net().eval()), imm.ReverseKD(rows())
        for word, label in DataLoader(words(), batch_size=40 // parts):
            with accelerator.accumulate(model):
                log_q = model(word)
                accelerator.backward(nll_loss(log_q, label) + term(log_q, word))
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)
def test_lightning_needs_nothing_but_the_term_as_a_submodule(tmp_path):
    """Evaluation, accumulation, checkpoint and resume."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.term = Net(0.0), imm.MovingAverageIMM(rows(), V, V, momentum=0.3)

        def training_step(self, batch, _):
            word, label = batch
            log_q = self.model(word)
            return nll_loss(log_q, label) + self.term(log_q, word)

        def validation_step(self, batch, _):
            word, label = batch
            self.log("held_out", nll_loss(self.model(word), label))

        def configure_optimizers(self):
            return torch.optim.Adam(self.model.parameters(), 1e-2)

    def run(epochs, resume=None):
        torch.manual_seed(0)
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", accumulate_grad_batches=2, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        data = DataLoader(words(), batch_size=5), DataLoader(words(), batch_size=40)
        trainer.fit(module, *data, ckpt_path=resume)
        return trainer, module

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    _, whole = run(2)
    trainer, half = run(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    table = half.term.table.clone()
    trainer.validate(half, DataLoader(words(), batch_size=40), verbose=False)
    assert torch.equal(half.term.table.nan_to_num(), table.nan_to_num())
    _, again = run(2, resume=tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name].nan_to_num(), value.nan_to_num())
    assert len(half.state_dict()) == 2 + len(half.model.state_dict())
