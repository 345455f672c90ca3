"""The training runs by name: what ``python -m imm_lib run language-…`` computes and stores."""

from imm_lib.experiments import Experiment
from imm_lib.experiments.language import runs

_SETTINGS = {"width": 200, "dropout": 0.5, "epochs": 40}
_PTB = {"corpus": "ptb", "held_out": 1000, "settings": _SETTINGS}
_QUICK = {"corpus": "ptb", "held_out": 100, "settings": {"width": 16, "dropout": 0.2, "epochs": 2}}
PAPER = {
    **{"width": 1500, "dropout": 0.65, "scale": 0.04},
    **{"clip": 10.0, "decay": 1 / 1.15, "epochs": 55},
}
_ARMS = {
    "baseline": {},
    "baseline, lr 0.5": {"lr": 0.5},
    "KN noising": {"term": "noising"},
    **{f"reverse-KD, λ = {lam:g}": {"term": "reverse-KD", "lam": lam} for lam in (0.2, 1.0, 3.0)},
    **{
        f"moving average, λ = {lam:g}": {"term": "moving average", "lam": lam}
        for lam in (0.2, 1.0, 3.0)
    },
    "serialized, λ = 1": {"term": "serialized", "lam": 1.0},
    **{f"cached states, λ = {lam:g}": {"term": "sampled", "lam": lam} for lam in (0.2, 1.0)},
}


def _some(arms: dict, *names: str) -> dict:
    return {name: arms[name] for name in names}


_COMPARED = _some(_ARMS, "baseline", "reverse-KD, λ = 1", "moving average, λ = 1")

# λ = 1 from the first plateau on: up to there all arms of a seed are one run
_LATE = {"lam": 1.0, "start_lr": 0.5}
_AVERAGE = {**_LATE, "term": "moving average"}
_CACHED = {**_LATE, "term": "sampled", "clip_apart": False}
_PUZZLE = {
    "baseline": {},
    "moving average": _AVERAGE,
    "moving average, memory 500": {**_AVERAGE, "memory": 500},
    "moving average, clipped apart": {**_AVERAGE, "clip_apart": True},
    "moving average, own pass without dropout": {**_AVERAGE, "own_pass": True, "clip_apart": False},
    "cached states": _CACHED,
    "cached states, clipped apart": {**_CACHED, "clip_apart": True},
    "cached states, all words": {**_CACHED, "words": 0},
    "cached states, with dropout": {**_CACHED, "with_dropout": True},
    "cached states, m = 5": {**_CACHED, "steps": 5},
    "cached states, uncorrected": {**_CACHED, "term": "sampled, uncorrected"},
    "cached states, from the first step": {**_CACHED, "start_lr": 1.0},
}
# what the moving average's learning rate did in the puzzle, for every arm; terms act from its first
# fall on
_RATE = {"epochs": 34, "start": 3, "falls": [3, 18, 21, 24, 27, 30]}
_COURSE = {
    "baseline": {},
    "reverse-KD": {"term": "reverse-KD", "lam": 1.0},
    "moving average": {"term": "moving average", "lam": 1.0},
    "cached states": {"term": "sampled", "lam": 1.0, "clip_apart": False},
    "cached states, clipped apart": {"term": "sampled", "lam": 1.0},
}

_FUSED = {"term": "fused", "lam": 1.0}
_SEEN = {
    "baseline": {},
    "seen labels, λ = 1": _FUSED,
    "all labels, λ = 1": {**_FUSED, "labels": "all"},
    "reverse-KD, λ = 1": {**_FUSED, "labels": "none"},
    "seen labels, λ = 3": {**_FUSED, "lam": 3.0},
}
_TUNED = {
    "tail, λ = 0.3": {**_FUSED, "tail": 0.3},
    "tail, λ = 3": {**_FUSED, "tail": 3.0},
    "pairs seen twice": {**_FUSED, "least": 2},
    "pairs seen four times": {**_FUSED, "least": 4},
}

# a fixed course of the rate: on so short a text its own, by validation, ends a run by chance
_SMALL = {
    "corpus": "ptb",
    "held_out": 400,
    "settings": {
        **{"width": 100, "dropout": 0.5, "batch": 10, "unroll": 20, "epochs": 20},
        "falls": [10, 12, 14, 16, 18],
    },
    **{"induced": False, "sizes": [[421, 3]]},
}
_TABLE = {"term": "fused", "labels": "all"}
_DROPOUT = {
    f"dropout {dropout:g}, λ = {lam:g}": {"dropout": dropout}
    | ({**_TABLE, "lam": lam} if lam else {})
    for dropout in (0.2, 0.5, 0.65)
    for lam in (0.0, 0.5, 1.0)
}
_FREQUENCY = {
    "baseline": {},
    "reverse-KD": {**_FUSED, "labels": "none"},
    **{
        f"{labels} labels, memory {memory}": {**_FUSED, "labels": labels, "memory": memory}
        for labels in ("all", "seen")
        for memory in (3, 10, 100)
    },
}
_FRONTIER = {
    "baseline": {},
    "moving average, λ = 1": {**_TABLE, "lam": 1.0},
    **{
        f"k = {k}, every {every}": {
            **{"term": "sampled", "lam": 1.0, "k": k, "every": every},
            "clip_apart": False,  # apart, a rare step five times as strong makes SGD diverge
        }
        for k in (1, 2, 5, 10)
        for every in (1, 2, 5)
    },
}

# all of the text, with one course of the rate for every arm
_FULL = {
    "baseline": {},
    "seen labels, λ = 0.2": {**_FUSED, "lam": 0.2},
    "reverse-KD, λ = 0.2": {**_FUSED, "lam": 0.2, "labels": "none"},
    "seen labels, λ = 1": _FUSED,
    "reverse-KD, λ = 0.05": {**_FUSED, "lam": 0.05, "labels": "none"},
}
_SHARED = {"width": 200, "dropout": 0.3, "epochs": 11, "falls": [6, 7, 8, 9, 10]}

_TOPICS = {
    **{"corpus": "topics", "held_out": None, "sizes": [[4000, 20]]},
    "settings": {"width": 32, "scale": 0.5, "batch": 5, "unroll": 20, "epochs": 25},
}
_SKIP = {
    "baseline": {},
    "bigram, λ = 1.5": {"term": "moving average", "lam": 1.5},
    "bigram, λ = 3": {"term": "moving average", "lam": 3.0},
    "skip-bigram, λ = 3": {"term": "skip-bigram", "lam": 3.0},
    "both, λ = 1.5 each": {"term": "both", "lam": 3.0},
}
_WIKITEXT = {
    **{"corpus": "wikitext2", "held_out": 400, "sizes": [[1102, 2]]},
    "settings": {**_SETTINGS, "epochs": 20},
    **{"least": 0, "induced": False},
}


def _experiment(name: str, arms: dict, base: dict, gpu: bool = False, **changes) -> Experiment:
    """Training runs by arm, size and seed; at the scale "ci" a few words, units and epochs of some
    of the arms.
    """
    names = list(arms)
    quick = {**_QUICK, "sizes": [[100, 1]], "arms": _some(arms, *names[:: len(names) // 2])}
    scales = {"full": {**base, **changes, "arms": arms}, "ci": quick}
    return Experiment(name, scales, runs.units, runs.run, runs.table, gpu, check=runs.check)


EXPERIMENTS = [
    _experiment("language-methods", _ARMS, _PTB, sizes=[[1262, 5]]),
    _experiment(
        "language-paper",
        {name: _ARMS[name] for name in _ARMS if name != "baseline, lr 0.5"},
        {"corpus": "ptb", "held_out": None, "settings": PAPER, "sizes": [[runs.LINES, 2]]},
        gpu=True,
    ),
    _experiment("language-sizes", _COMPARED, _PTB, sizes=[[421, 5], [4207, 2]]),
    _experiment("language-large", _COMPARED, _PTB, sizes=[[12_620, 1]]),
    _experiment("language-full", _FULL, _PTB, settings=_SHARED, sizes=[[runs.LINES, 1]]),
    _experiment("language-puzzle", _PUZZLE, _PTB, sizes=[[1262, 2]]),
    _experiment("language-rate", _COURSE, _PTB, settings={**_SETTINGS, **_RATE}, sizes=[[1262, 2]]),
    _experiment("language-skip", _SKIP, _TOPICS),
    _experiment("language-seen", _SEEN, _PTB, sizes=[[1262, 5]]),
    _experiment(
        "language-seen-sizes",
        {arm: _SEEN[arm] for arm in _SEEN if arm != "seen labels, λ = 3"},
        _PTB,
        sizes=[[4207, 2]],
    ),
    _experiment("language-seen-line", _TUNED, _PTB, sizes=[[1262, 3]]),
    _experiment(
        "language-wikitext",
        _some(_SEEN, "baseline", "seen labels, λ = 1", "reverse-KD, λ = 1"),
        _WIKITEXT,
    ),
    _experiment("language-dropout", _DROPOUT, _SMALL),
    _experiment("language-frequency", _FREQUENCY, _SMALL, sizes=[[421, 5]]),
    _experiment("language-frontier", _FRONTIER, _SMALL),
]
