"""Each engine with each estimator: right, or refused; never silently wrong."""

import re

import cells
import pytest

FOUND = {}
REFUSED = {
    ("FSDP2", "sequential"): "sequential=False",
    ("`fullgraph=True`", "exact"): "data-dependent|guard on",
    ("`fullgraph=True`", "sequential"): "requires_grad=True|skipped|is_inference_mode",
    ("`fullgraph=True`", "fused"): "data-dependent|guard on|Unsupported function call",
    ("`torch.func`", "sequential"): "take sequential=False",
    ("`torch.func`", "moving average"): "must be in eval mode under torch.func",
    ("`torch.func`", "fused"): "FusedIMM does not work under torch.func",
    ("Hugging Face `Trainer`", "serialized"): "take MovingAverageIMM",
    ("Hugging Face `Trainer`", "fused"): "let the model's forward return its scalar",
}


@pytest.mark.parametrize("name", cells.ESTIMATORS)
@pytest.mark.parametrize("engine", cells.ENGINES)
def test_right_or_refused(engine, name):
    FOUND[engine, name] = found, why = cells.verdict(engine, name)
    assert found == ("refused" if (engine, name) in REFUSED else "right"), why
    assert re.search(REFUSED.get((engine, name), "^$"), why)


def test_the_table_of_the_recipes_is_what_was_found():
    """`python tests/engines/cells.py` writes it."""
    for engine in cells.ENGINES:
        for name in cells.ESTIMATORS:
            FOUND.setdefault((engine, name), None) or FOUND.update(
                {(engine, name): cells.verdict(engine, name)}
            )
    assert cells.PAGE.read_text(encoding="utf-8") == cells.page(FOUND)
