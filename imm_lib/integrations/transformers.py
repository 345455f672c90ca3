"""Hugging Face's ``Trainer`` with an IMM term. Needs the extra ``trainers``."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import nll_loss
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from imm_lib import checks
from imm_lib.estimators import ExactIMM, SampledIMM
from imm_lib.fused import FusedIMM
from imm_lib.surrogates import MovingAverageIMM, SerializedIMM

IGNORED = -100
"""The label of a position that counts for nothing, as in transformers."""


class IMMTrainer(Trainer):
    """``transformers.Trainer`` whose training loss is cross-entropy + λ · IMM.

    For a subclass of ``Trainer``: ``class Mine(IMMTrainer, SFTTrainer)``. λ multiplies the mean
    over all positions of an optimiser step that have a label, whatever the number of micro-batches
    and processes: the term is scaled as the model's loss was. Evaluation reports the model's own
    loss and leaves the term alone. With every checkpoint the term's state is written beside the
    weights, and read again by ``train(resume_from_checkpoint=...)``; the model's own files stay as
    they are. A moving average makes one step of its momentum in all an optimiser step.

    Args:
        args, kwargs: as of ``Trainer``.
        term: an estimator. :class:`imm_lib.MovingAverageIMM` and :class:`imm_lib.ReverseKD` take
            the model's own logits; :class:`imm_lib.SampledIMM` and :class:`imm_lib.ExactIMM` need
            ``query``.
        lam: λ, at least 0.
        query: (model, short, extended) -> (N, Y) log-probabilities, for the estimators that run the
            model themselves.
        short: name of the batch's column of short contexts, of the shape of the labels (the model
            never sees it). By default, for causal language models, ``input_ids``: the short context
            is the current word, and labels and logits are shifted by one place.
        shift: whether the label of a position stands one place later; by default only where
            ``short`` is not given.

    Raises:
        TypeError, ValueError: a term of another kind, ``query`` missing or too many, λ < 0, or
            ``DataParallel``; in training a batch without labels or short contexts, or a model
            without logits; on resuming a checkpoint without the term's state.
    """

    def __init__(
        self,
        *args: Any,
        term: nn.Module,
        lam: float = 1.0,
        query: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
        short: str | None = None,
        shift: bool | None = None,
        **kwargs: Any,
    ):
        if not isinstance(term, nn.Module):
            raise TypeError(f"term must be an estimator, got {checks.describe(term)}")
        if isinstance(term, FusedIMM):
            raise TypeError(
                "term must not be FusedIMM, which takes the place of the model's last layer: let "
                "the model's forward return its scalar as the loss, and use transformers.Trainer"
            )
        if isinstance(term, SerializedIMM):
            raise TypeError(
                "term must not be SerializedIMM, which needs a second model and sweeps over the "
                "data between steps; take MovingAverageIMM"
            )
        if isinstance(term, ExactIMM | SampledIMM) != (query is not None):
            need = "needs query" if query is None else "takes the model's logits, and no query"
            raise ValueError(
                f"query must be given for SampledIMM and ExactIMM only: the term {need}"
            )
        self.lam, self.term, self.query = checks.number("lam", lam, 0), term, query
        self.short = short
        self.shift = short is None if shift is None else checks.flag("shift", shift)
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError("IMM does not work under DataParallel: start the script with torchrun")
        self.term.to(self.args.device).train()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's loss, and in training λ times the term."""
        own = dict(inputs)
        short = own.pop(self.short, None) if self.short else own.get("input_ids")
        labels = own.get("labels")
        loss, outputs = super().compute_loss(
            model, own, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if model.training:
            if short is None:
                name = self.short or "input_ids"
                raise ValueError(f"inputs must hold {name!r}, got {', '.join(sorted(inputs))}")
            log_q, short, labels = self._positions(outputs, short, labels)
            if len(labels) > 0:
                share = self._share(loss, log_q, labels, num_items_in_batch)
                loss = loss + self.lam * share * self._term(model, log_q, short)
        return (loss, outputs) if return_outputs else loss

    def _positions(
        self, outputs: Any, short: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, Y) log-probabilities, (N, ...) short contexts, (N,) labels of labelled positions."""
        if labels is None:
            raise ValueError("inputs must hold labels, got none")
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[1]
        checks.floating("logits", logits, *labels.shape, "Y", why=", as labels are")
        if self.shift and labels.dim() < 2:
            raise ValueError(
                f"labels must be (B, T) where they are shifted, got {checks.describe(labels)}: of "
                "a classifier, pass the name of a column of short contexts, short="
            )
        if short.shape[: labels.dim()] != labels.shape:
            raise ValueError(
                f"short contexts must be {tuple(labels.shape)}, as labels are, got "
                f"{checks.describe(short)}"
            )
        if self.shift:
            logits, short, labels = logits[:, :-1], short[:, :-1], labels[:, 1:]
        keep = labels != IGNORED
        return logits[keep].float().log_softmax(-1), short[keep], labels[keep]

    def _term(self, model: nn.Module, log_q: Tensor, short: Tensor) -> Tensor:
        """The term, whose value is the risk: that of a surrogate means nothing in a log."""
        if self.query is not None:
            query = self.query
            return self.term(lambda own, extended: query(model, own, extended), short)
        if not isinstance(self.term, MovingAverageIMM):
            return self.term(log_q, short)
        momentum = self.term.momentum
        parts = getattr(self, "current_gradient_accumulation_steps", 1)
        try:
            self.term.momentum = 1 - (1 - momentum) ** (1 / parts)
            surrogate = self.term(log_q, short)
        finally:
            self.term.momentum = momentum
        return surrogate + (self.term.risk - surrogate).detach()

    def _share(
        self, loss: Tensor, log_q: Tensor, labels: Tensor, items: Tensor | int | None
    ) -> Tensor | float:
        """What became of the mean over this micro-batch in ``loss``, so that λ stays λ.

        Where the number of items is known the Trainer lets the model divide by it; some models take
        the mean of the micro-batch all the same.
        """
        if items is None or not (self.model_accepts_loss_kwargs or self.compute_loss_func):
            return 1.0
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        count = labels.new_tensor(len(labels), dtype=torch.float32)
        if (group := getattr(self.term, "group", None)) is not None:
            dist.all_reduce(count, group=group)
            count = count / dist.get_world_size(group)
        mean = nll_loss(log_q.detach(), labels)
        is_mean = torch.isclose(loss.detach() / scale, mean, rtol=1e-3)
        return scale * torch.where(is_mean, 1.0, count / items)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As ``Trainer.log``, with the term's risk in nats beside the training loss."""
        risk = self.term.risk
        if "loss" in logs and isinstance(risk, Tensor):
            logs = logs | {"imm_risk": risk.item()}
        super().log(logs, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        if self.short and self.short not in columns:
            columns.append(self.short)

    def _file(self, folder: str) -> str:
        """Every process has a table of its own, unless the estimator has a group."""
        joint = self.args.world_size == 1 or getattr(self.term, "group", None) is not None
        return os.path.join(folder, "imm.pt" if joint else f"imm_{self.args.process_index}.pt")

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As ``Trainer.save_model``, with the term's state beside the weights."""
        super().save_model(output_dir, *args, **kwargs)
        file = self._file(output_dir or str(self.args.output_dir))
        if self.args.process_index == 0 or not file.endswith("imm.pt"):
            torch.save(self.term.state_dict(), file + ".part")
            os.replace(file + ".part", file)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As ``Trainer.train``; on resuming the term is read too."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder:
            file = self._file(folder)
            if not os.path.isfile(file):
                raise ValueError(
                    f"resume_from_checkpoint must hold the term's state, {file} is not there"
                )
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # garbage makes torch raise almost anything
                raise ValueError(
                    f"resume_from_checkpoint must hold the term's state, {file} is damaged: {error}"
                ) from None
            self.term.load_state_dict(state)
        return super().train(resume_from_checkpoint, *args, **kwargs)
