"""What is measured of a model: GLUE's scores, and the premise of IMM: does the target know
something that the model's own induced bigram does not?
"""

import math

import torch
from torch import Tensor

from imm_lib import checks
from imm_lib.experiments.masked import tasks
from imm_lib.experiments.masked.encoder import MaskedLM
from imm_lib.experiments.masked.prefixes import Prefixes
from imm_lib.experiments.masked.target import Restricted


@torch.no_grad()
def premise(
    model: MaskedLM,
    target: Restricted,
    train: Prefixes,
    held_out: Prefixes,
    places: int = 500,
    k: int = 20,
) -> dict[str, dict[str, float]]:
    """Cross-entropy on held-out words of the target, of the model's induced bigram, and of the
    model on its prefix.

    Where the target is not below the induced bigram there is nothing that IMM could teach; where it
    is below the model on its full prefix, the model is so poor that its induced model matters
    little.

    The average over k prefixes stands for the induced bigram. By Jensen's inequality its logarithm
    is a little low on average, which favours the target.

    Args:
        model: without dropout; on one device with what follows.
        target: the restricted model; has ``log_prob``.
        train: whose prefixes make the induced bigram.
        held_out: whose words are predicted, after words that ``train`` has as well.
        places: drawn without replacement, or all if there are fewer.
        k: prefixes of each word in the induced bigram.

    Returns:
        "target", "induced" and "prefix", each with "mean" and "se" in nats, clustered by the word
        before; and the same of the paired differences of the target from the other two: "target -
        induced", "target - prefix".

    Raises:
        TypeError, ValueError: a number out of range, or no held-out word after a known one.
    """
    model.eval()
    generator = torch.Generator().manual_seed(0)
    known = (train.contexts.counts[held_out.short] > 0).nonzero().flatten()
    if len(known) == 0:
        raise ValueError("held_out must have a word after one that train has as well, got none")
    drawn = known[
        torch.randperm(len(known), generator=generator)[: checks.count("places", places)].to(
            known.device
        )
    ]
    short, label = held_out.short[drawn], held_out.label[drawn]
    prefix = held_out.log_q(model, drawn).gather(1, label.unsqueeze(1)).squeeze(1)
    induced = torch.empty(len(drawn), device=drawn.device)
    for word in short.unique():  # one induced row for all places of a word
        at = (short == word).nonzero().flatten()
        extended = train.contexts.sample(word.view(1), checks.count("k", k), generator)[0]
        row = train.log_q(model, extended).logsumexp(0) - math.log(k)
        induced[at] = row[label[at]]
    losses = {"target": -target.log_prob(short, label), "induced": -induced, "prefix": -prefix}
    for other in ("induced", "prefix"):
        losses[f"target - {other}"] = losses["target"] - losses[other]
    return {name: _mean(values.double(), short) for name, values in losses.items()}


def _mean(values: Tensor, group: Tensor) -> dict[str, float]:
    """The mean and its standard error, where places after the same word are not independent: they
    share prefixes.
    """
    _, which = group.unique(return_inverse=True)
    sums = values.new_zeros(int(which.max()) + 1).index_add_(0, which, values - values.mean())
    return {"mean": values.mean().item(), "se": sums.square().sum().sqrt().item() / len(values)}


def score(name: str, log_probs: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    """Measures of predictions.

    Args:
        name: of a task.
        log_probs: (N, C) of the labels.
        label: (N,).

    Returns:
        "accuracy" and, where GLUE reports it, "mcc" or "f1", of which "score" is the task's own;
        "auc", the area under the ROC curve, and "nats", the mean log-loss, which move before a
        prediction turns over.

    Raises:
        TypeError, ValueError: an unknown task, or predictions that are not as many as labels.

    >>> p = torch.tensor([[0.4, 0.6], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1]])
    >>> score("CoLA", p.log(), torch.tensor([1, 0, 0, 0]))["mcc"].__round__(3)
    0.577
    """
    from sklearn import metrics

    task, label = tasks.named(name), checks.ids("label", label)
    if log_probs.shape != (len(label), len(task.labels)):
        raise ValueError(
            f"log_probs must be {(len(label), len(task.labels))}, got {tuple(log_probs.shape)}"
        )
    # the log-odds, since the probabilities of a sure model are all 1
    predicted, odds = log_probs.argmax(1), (log_probs[:, 1] - log_probs[:, 0]).clamp(-1e9, 1e9)
    known = {
        "accuracy": metrics.accuracy_score,
        "mcc": metrics.matthews_corrcoef,
        "f1": metrics.f1_score,
    }
    scores = {
        name: float(known[name](label, predicted))
        for name in dict.fromkeys(("accuracy", task.score))
    }
    auc = float(metrics.roc_auc_score(label, odds)) if len(label.unique()) == 2 else 0.5
    nats = torch.nn.functional.nll_loss(log_probs, label).item()
    return {**scores, "score": scores[task.score], "auc": auc, "nats": nats}
