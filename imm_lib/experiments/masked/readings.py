"""What the stored GLUE runs say: scores of the arms, paired by seed, and their tables."""

import statistics

from imm_lib import results


def paired(result: dict, task: str | None = None) -> dict[str, dict]:
    """The arms of a task on the same seeds.

    Args:
        result: a stored result.
        task: of GLUE; by default the first of the result.

    Returns:
        By arm "score", its mean and half-width of 95 % in per cent; "gain", the same of the difference to "base" and
        "over MLM" to "MLM", paired by seed; "step", CPU seconds of a step; "norms", the mean norms of the gradients
        by term; "seeds". Half-widths are None where there is one seed.
    """
    task = task or result["config"]["tasks"][0]
    units = [entry for entry in result["units"] if entry["unit"]["task"] == task]
    scores, histories = {}, {}
    for entry in units:
        arm, numbers = entry["unit"]["arm"], entry["numbers"]
        scores.setdefault(arm, {})[entry["unit"]["seed"]] = 100 * numbers["scores"]["score"]
        histories.setdefault(arm, []).extend(numbers["history"])
    found = {}
    for arm, own in scores.items():
        terms = [key for key in histories[arm][0] if key.startswith("norm ")]
        found[arm] = {
            "score": _interval(list(own.values())),
            "gain": _difference(own, scores["base"]),
            "over MLM": _difference(own, scores.get("MLM", {})),
            "step": statistics.fmean(epoch["cpu_s"] / epoch["steps"] for epoch in histories[arm]),
            "norms": {t.removeprefix("norm "): statistics.fmean(e[t] for e in histories[arm]) for t in terms},
            "seeds": len(own),
        }
    return found


def _interval(values: list[float]) -> tuple[float, float | None]:
    return results.mean_interval(values) if len(values) > 1 else (values[0], None)


def _difference(own: dict, other: dict) -> tuple[float, float | None] | None:
    seeds = [seed for seed in own if seed in other]
    return _interval([own[seed] - other[seed] for seed in seeds]) if seeds else None


def _shown(pair: tuple | None) -> str:
    if pair is None:
        return ""
    return f"{pair[0]:.2f}" + (f" ± {pair[1]:.2f}" if pair[1] is not None else "")


def table(result: dict) -> list[list[str]]:
    """Every task and arm."""
    rows = [["task", "arm", "score", "less base", "less MLM", "CPU s a step", "seeds"]]
    for task in result["config"]["tasks"]:
        for arm, f in paired(result, task).items():
            cells = [_shown(f[key]) for key in ("score", "gain", "over MLM")]
            rows.append([task, arm, *cells, f"{f['step']:.2f}", str(f["seeds"])])
    return rows


def choice_table(result: dict) -> list[list[str]]:
    """The held-out score of every number that was tried."""
    rows = [["arm", "number", "score"]]
    for entry in result["units"]:
        unit = entry["unit"]
        ((name, value),) = [(k, v) for k, v in unit.items() if k not in ("task", "arm", "seed")]
        rows.append([unit["arm"], f"{name} = {value:g}", f"{100 * entry['numbers']['scores']['score']:.2f}"])
    return rows


def premise_table(result: dict) -> list[list[str]]:
    """Cross-entropies on held-out words, before and after pretraining."""
    rows = [["task", "pretraining", "target", "induced bigram", "model on its prefix", "target less induced"]]
    for entry in result["units"]:
        for when in ("before", "after"):
            read = entry["numbers"][when]
            cells = [f"{read[key]['mean']:.3f}" for key in ("target", "induced", "prefix")]
            difference = read["target - induced"]
            cells.append(f"{difference['mean']:+.3f} ± {2 * difference['se']:.3f}")
            rows.append([entry["unit"]["task"], when, *cells])
    return rows


def pretrain_table(result: dict) -> list[list[str]]:
    """The loss along the way."""
    losses = result["units"][0]["numbers"]["loss"]
    shown = range(0, len(losses), max(1, len(losses) // 10))
    return [["share of steps", "loss, nats"], *([f"{i / len(losses):.2f}", f"{losses[i]:.3f}"] for i in shown)]
