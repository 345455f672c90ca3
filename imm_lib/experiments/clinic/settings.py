"""What the benchmark's experiments are told: their configurations, and the checks of them."""

from imm_lib import checks
from imm_lib.experiments import options
from imm_lib.experiments.clinic import sources, training, walks
from imm_lib.experiments.clinic.protocol import FOLDS
from imm_lib.experiments.language import runs as language
from imm_lib.experiments.logistic.problem import Plane


def whole(config: dict, *names: str, least: int = 1) -> None:
    """Raise ValueError unless these entries are whole numbers, alone or in lists, of at least
    that.
    """
    for name in names:
        values = config[name]
        for value in values if isinstance(values, list | tuple) else [values]:
            if checks.count(name, value) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")


def check_blocks(config: dict) -> None:
    """Repetitions in whole blocks."""
    whole(config, "repetitions", "block")
    if config["repetitions"] % config["block"]:
        raise ValueError(
            f"repetitions must be a multiple of block {config['block']}, got "
            f"{config['repetitions']}"
        )


def check_tables(config: dict) -> None:
    """Known tables and models, and sizes of which every fold has two cases."""
    check_blocks(config)
    options.rows("cases", config["cases"], 3)
    for name, kind, sizes in config["cases"]:
        options.one_of("cases' table", name, set(config["m"]) & set(sources.SOURCES))
        options.one_of("cases' model", kind, training.RATES)
        whole({"cases' sizes": sizes}, "cases' sizes", least=2 * FOLDS)
    for name, value in config["bandwidth"].items():
        checks.number(f"bandwidth of {name}", value, 0, open_low=True)


def check_cube(config: dict) -> None:
    """Planes that cut the cube, and sizes of which every fold has two cases."""
    check_blocks(config)
    options.rows("normals", config["normals"], 3)
    for normal in config["normals"]:
        Plane.through_centre(*normal)
    whole(config, "sizes", least=2 * FOLDS)
    options.at_most("sizes", config["sizes"], training.ROWS)


def check_grid(config: dict) -> None:
    """Known targets and increasing budgets."""
    options.each("targets", config["targets"], walks.TARGETS)
    whole(config, "budgets", "choosing")
    whole(config, "reporting", least=2)
    if config["budgets"] != sorted(set(config["budgets"])):
        raise ValueError(f"budgets must increase, got {config['budgets']}")


def check_text(config: dict) -> None:
    """Tasks that have arms, and arms and settings that are known."""
    options.rows("tasks", config["tasks"], 3)
    for task, lines, seeds in config["tasks"]:
        options.one_of("tasks", task, config["by_task"])
        options.each(f"arms of {task}", config["by_task"][task], config["arms"])
        whole({"lines": lines, "seeds": seeds}, "lines", "seeds")
    for task, settings in config["settings_by_task"].items():
        options.each(f"settings of {task}", settings, language.KNOWN)


SIDE = {
    "breast cancer": 300,
    "wine": 60,
    "digits": 800,
    "fair": 2000,
    "anes96": 400,
    "diabetes": 150,
}
"""Side cases of each table, on which its restricted model is fitted."""

TABLES = {
    "m": SIDE,
    "bandwidth": {"digits": 0.1},
    "steps": 200,
    "repetitions": 20,
    "block": 20,
    "cases": [
        ["breast cancer", "linear", [20, 80]],
        ["breast cancer", "network", [20, 80]],
        ["wine", "linear", [20, 60]],
        ["wine", "network", [20, 60]],
        ["anes96", "linear", [20, 100]],
        ["anes96", "network", [20, 100]],
        ["diabetes", "linear", [20, 100]],
        ["diabetes", "network", [20, 100]],
        ["fair", "linear", [20, 100]],
        ["fair", "network", [20, 100]],
        ["digits", "network", [50, 200]],
    ],
}
LARGE = {**TABLES, "cases": [["fair", "linear", [500, 2000]], ["fair", "network", [500]]]}

TERMS = {"reverse-KD": "reverse-KD", "moving average": "moving average"}
TUNED = [
    "baseline",
    "baseline, lr 0.5",
    *(f"{name}, λ = {lam:g}" for name in TERMS for lam in (0.2, 1.0, 3.0)),
]
ONE = ["baseline", *(f"{name}, λ = 1" for name in TERMS)]
TRANSFORMER = "transformer, 3 % of PTB"
TEXT = {
    "corpus": "ptb",
    "held_out": 1000,
    "settings": {"width": 200, "dropout": 0.5, "epochs": 40},
    "arms": {
        "baseline": {},
        "baseline, lr 0.5": {"lr": 0.5},
        **{
            f"{name}, λ = {lam:g}": {"term": term, "lam": lam}
            for name, term in TERMS.items()
            for lam in (0.2, 1.0, 3.0)
        },
    },
    "tasks": [
        ["LSTM, 1 % of PTB", 421, 5],
        ["LSTM, 3 % of PTB", 1262, 5],
        ["LSTM, 10 % of PTB", 4207, 2],
        [TRANSFORMER, 1262, 5],
    ],
    "settings_by_task": {
        TRANSFORMER: {
            **{"model": "transformer", "width": 128, "dropout": 0.3, "batch": 10},
            **{"optimiser": "adam", "lr": 2e-3, "epochs": 25},
        }
    },
    "by_task": {
        "LSTM, 1 % of PTB": ONE,
        "LSTM, 3 % of PTB": TUNED,
        "LSTM, 10 % of PTB": ONE,
        TRANSFORMER: ONE,
    },
    "reuse": True,
}
