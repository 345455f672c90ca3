"""What the stored GLUE runs say: scores of the arms, paired by seed, and their tables."""

import statistics

from imm_lib import results


def paired(result: dict, task: str | None = None, measure: str = "score") -> dict[str, dict]:
    """The arms of a task on the same seeds.

    Args:
        result: a stored result.
        task: of GLUE; by default the first of the result.
        measure: "score" or "auc", in per cent, or "nats".

    Returns:
        By arm "score", mean and half-width of 95 %; "gain", the same of the difference to "base"
        and "over MLM" to "MLM", paired by seed; "fitted", the task's training loss in the last
        epoch, nats; "step", CPU seconds of a step; "norms", the mean norms of the gradients by
        term; "seeds". Half-widths are None where there is one seed.
    """
    task = task or result["config"]["tasks"][0]
    units = [entry for entry in result["units"] if entry["unit"]["task"] == task]
    scores: dict[str, dict[int, float]] = {}
    histories: dict[str, list[dict]] = {}
    fitted: dict[str, list[float]] = {}
    unit = 1 if measure == "nats" else 100
    for entry in units:
        arm, numbers = entry["unit"]["arm"], entry["numbers"]
        scores.setdefault(arm, {})[entry["unit"]["seed"]] = unit * numbers["scores"][measure]
        histories.setdefault(arm, []).extend(numbers["history"])
        fitted.setdefault(arm, []).append(numbers["history"][-1]["task"])
    found = {}
    for arm, own in scores.items():
        terms = [key for key in histories[arm][0] if key.startswith("norm ")]
        found[arm] = {
            "score": _interval(list(own.values())),
            "gain": _difference(own, scores["base"]),
            "over MLM": _difference(own, scores.get("MLM", {})),
            "fitted": statistics.fmean(fitted[arm]),
            "step": statistics.fmean(epoch["cpu_s"] / epoch["steps"] for epoch in histories[arm]),
            "norms": {
                t.removeprefix("norm "): statistics.fmean(e[t] for e in histories[arm])
                for t in terms
            },
            "seeds": len(own),
        }
    return found


def views(result: dict, task: str | None = None, over: str = "MLM") -> dict[str, dict]:
    """What the tuned models know of held-out words: means over the seeds and half-widths of 95 %,
    in nats.

    Args:
        result: a stored result whose runs took the premise of their tuned models.
        task: of GLUE; by default the first of the result.
        over: an arm.

    Returns:
        By arm the cross-entropies "target", "induced" and "prefix", see
        :func:`imm_lib.experiments.masked.premise`; and "induced over ARM" and "prefix over ARM",
        the differences to that arm, paired by seed. Half-widths are None where there is one seed,
        differences where there is no such arm.
    """
    task = task or result["config"]["tasks"][0]
    known: dict[str, dict[str, dict[int, float]]] = {}
    kinds = ("target", "induced", "prefix")
    for entry in result["units"]:
        unit = entry["unit"]
        if unit["task"] == task:
            for key in kinds:
                own = known.setdefault(unit["arm"], {}).setdefault(key, {})
                own[unit["seed"]] = entry["numbers"]["premise"][key]["mean"]
    found: dict[str, dict] = {}
    for arm, views in known.items():
        found[arm] = {key: _interval(list(views[key].values())) for key in kinds}
        for key in kinds[1:]:
            found[arm][f"{key} over {over}"] = _difference(
                views[key], known.get(over, {}).get(key, {})
            )
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
    """Every task and arm; the last column is of the tuned models' induced bigrams, where they were
    asked.
    """
    names = [
        "score",
        "less base",
        "less MLM",
        "AUC less MLM",
        "CPU s a step",
        "seeds",
        "induced less MLM, nats",
    ]
    rows = [["task", "arm", *names]]
    for task in result["config"]["tasks"]:
        area = paired(result, task, "auc")
        known = views(result, task) if result["config"].get("premise") else {}
        for arm, f in paired(result, task).items():
            cells = [_shown(f[key]) for key in ("score", "gain", "over MLM")] + [
                _shown(area[arm]["over MLM"])
            ]
            induced = _shown(known[arm]["induced over MLM"]) if known else ""
            rows.append([task, arm, *cells, f"{f['step']:.2f}", str(f["seeds"]), induced])
    return rows


def chosen(result: dict) -> dict[str, float]:
    """By arm the best of the numbers that were tried in it, by the area under the curve on held-out
    examples.
    """
    best: dict[str, tuple[float, float]] = {}
    for entry in result["units"]:
        arm, (_, value) = entry["unit"]["arm"], _tried(entry["unit"])
        best[arm] = max(best.get(arm, (0.0, 0.0)), (entry["numbers"]["scores"]["auc"], value))
    return {arm: value for arm, (_, value) in best.items()}


def _tried(unit: dict) -> tuple[str, float]:
    ((name, value),) = [(k, v) for k, v in unit.items() if k not in ("task", "arm", "seed")]
    return name, value


def choice_table(result: dict) -> list[list[str]]:
    """The held-out measures of every number that was tried."""
    rows = [["arm", "number", "log-loss, nats", "AUC", "score"]]
    for entry in result["units"]:
        name, value = _tried(entry["unit"])
        scores = entry["numbers"]["scores"]
        cells = [
            f"{scores['nats']:.4f}",
            f"{100 * scores['auc']:.2f}",
            f"{100 * scores['score']:.2f}",
        ]
        rows.append([entry["unit"]["arm"], f"{name} = {value:g}", *cells])
    return rows


def premise_table(result: dict) -> list[list[str]]:
    """Cross-entropies on held-out words, before and after pretraining."""
    rows = [
        [
            "task",
            "pretraining",
            "target",
            "induced bigram",
            "model on its prefix",
            "target less induced",
        ]
    ]
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
    return [
        ["share of steps", "loss, nats"],
        *([f"{i / len(losses):.2f}", f"{losses[i]:.3f}"] for i in shown),
    ]
