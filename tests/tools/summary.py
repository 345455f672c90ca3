"""The gate's last line, counted from the JUnit reports; exits 1 where a step ran nothing it should
have run.
"""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]


def count(report: Path) -> dict[str, int]:
    """Passed, skipped and failed tests of a report, notebook cells and what needs a browser
    apart.
    """
    counts = dict.fromkeys(
        ("passed", "skipped", "no_browser", "failed", "cells", "cells_skipped"), 0
    )
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        cell = "cells" if case.get("name", "").startswith("Cell ") else ""
        if kinds & {"failure", "error"}:
            counts["failed"] += 1
        elif "skipped" in kinds:
            browser = "needs Chromium" in case.find("skipped").get("message", "")
            counts["cells_skipped" if cell else "no_browser" if browser else "skipped"] += 1
        else:
            counts[cell or "passed"] += 1
    return counts


def summarise(reports: Path, notebook_cells: int, pages: int) -> tuple[str, list[str]]:
    """The line to print, and the complaints: failures, or a step that ran less than there is."""
    steps = {name: count(reports / f"{name}.xml") for name in ("unit", "notebooks", "book")}
    total = {key: sum(step[key] for step in steps.values()) for key in steps["unit"]}
    complaints = [f"{name}: {s['failed']} failed" for name, s in steps.items() if s["failed"]]
    complaints += [f"{name}: no test passed" for name, s in steps.items() if not s["passed"]]
    if steps["book"]["skipped"]:
        complaints.append("book: a check of the rendered pages was skipped")
    if total["cells"] + total["cells_skipped"] != notebook_cells:
        complaints.append(f"notebooks: {notebook_cells} code cells, but {total['cells']} ran")
    left_out = f" ({total['cells_skipped']} skipped)" if total["cells_skipped"] else ""
    tests = f"gate: {total['passed']} tests passed, {total['skipped']} skipped"
    tests += f", {total['no_browser']} without a browser" if total["no_browser"] else ""
    return (
        f"{tests}, {total['cells']} notebook cells re-executed{left_out}, {pages} pages checked",
        complaints,
    )


def main(reports: str) -> int:
    """Print the line; 0 when nothing is wrong."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = 1 + sum(len(part["chapters"]) for part in toc.get("parts", [toc]))
    notebooks = [
        nbformat.read(path, as_version=4) for path in sorted((ROOT / "book").glob("*.ipynb"))
    ]
    cells = sum(cell.cell_type == "code" for notebook in notebooks for cell in notebook.cells)
    line, complaints = summarise(Path(reports), cells, pages)
    for complaint in complaints:
        print(f"gate: {complaint}", file=sys.stderr)
    print(line)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
