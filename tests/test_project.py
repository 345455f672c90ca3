"""The project agrees with itself: dependencies, lock, conda, README, reference page, the gate's
count, the runner.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import nbformat
import needs
import pytest
import rerun
import summary
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import imm_lib as imm

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"pytorch-cpu": "torch", "pytorch-gpu": "torch"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def by_name(lines) -> dict[str, str]:
    requirements = [Requirement(line) for line in lines]
    return {
        CONDA_NAMES.get(r.name, str(canonicalize_name(r.name))): str(r.specifier)
        for r in requirements
    }


def declared() -> dict[str, str]:
    """Every dependency of the project and its extras, without the extra that gathers the others."""
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [
        line for name, lines in extras.items() if name != "dev" for line in lines
    ]
    return by_name(lines)


def locked() -> dict[str, Version]:
    pins = [
        line.split("==")
        for line in read("requirements.lock").splitlines()
        if line and not line.startswith("#")
    ]
    return {str(canonicalize_name(name)): Version(version) for name, version in pins}


def test_the_dev_extra_gathers_all_others():
    (dev,) = PROJECT["optional-dependencies"]["dev"]
    assert Requirement(dev).extras == set(PROJECT["optional-dependencies"]) - {"dev"}


def test_conda_and_pip_ask_for_the_same():
    dependencies = yaml.safe_load(read("environment.yml"))["dependencies"]
    lines = [line for line in dependencies if isinstance(line, str)]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    conda = by_name([*lines, *pip])
    assert conda.pop("python") == PROJECT["requires-python"]
    assert conda.pop("pip") == ""
    assert conda == declared()


def test_conda_offers_the_gpu_with_the_same_bound():
    (gpu,) = re.findall(r"# - (pytorch-gpu.*)", read("environment.yml"))
    assert by_name([gpu])["torch"] == declared()["torch"]


def test_the_lock_satisfies_the_project_and_is_portable():
    pins = locked()
    for name, specifier in declared().items():
        assert Requirement(f"{name}{specifier}").specifier.contains(pins[name]), name
    assert str(pins["torch"]) == re.search(r"^TORCH := (\S+)", read("Makefile"), re.MULTILINE)[1]
    assert not [name for name in pins if name.startswith(("nvidia", "triton", "cuda", "imm"))]
    assert not [name for name, version in pins.items() if version.local]


def test_version_is_told_once():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == imm.__version__
    assert read("CHANGELOG.md").split("## ")[1].startswith(imm.__version__)


def test_the_readme_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["model"].weight.grad.abs().sum() > 0
    assert names["imm_loss"].risk > 0
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_the_program_of_the_front_page_prints_what_the_page_says(capsys):
    page = read("book/intro.md")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "intro.md", "exec"), {})
    assert f"\n    {capsys.readouterr().out}\n" in page
    assert max(map(len, code.splitlines())) <= 78
    assert len([line for line in code.splitlines() if line.strip()]) <= 25


def test_the_readme_and_help_name_real_commands():
    targets = set(re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE))
    told = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"make (\w+)", told)) == targets
    named = re.findall(
        r"(?:`|^ {4})make (\w+)", read("README.md") + read("CONTRIBUTING.md"), re.MULTILINE
    )
    assert {"book", "test"} <= set(named) <= targets


def test_the_layout_in_the_readme_exists():
    for path in re.findall(r"^\| `([\w./]+)`", read("README.md"), re.MULTILINE):
        assert (ROOT / path).exists(), path


def test_every_public_name_is_on_the_reference_page():
    page = re.sub(
        r"\.\. automodule:: \S+\n +:no-index:\n", "", read("book/api.md")
    )  # a room's introduction
    listed = re.findall(
        r"\.\. auto(?:class|function|module):: (?:imm_lib\.)?(\w+)$", page, re.MULTILINE
    )
    modules = {path.stem for path in (ROOT / "imm_lib").glob("*.py")}
    assert set(imm.__all__) <= set(listed) <= set(imm.__all__) | modules
    assert len(set(listed)) == len(listed)
    assert sorted(imm.__all__) == imm.__all__
    assert all((getattr(imm, name).__doc__ or "").strip() for name in imm.__all__)


def test_importing_the_library_needs_torch_and_numpy_only():
    extras = [
        "matplotlib",
        "pooch",
        "tqdm",
        "jsonschema",
        "psutil",
        "sklearn",
        "scipy",
        "nltk",
        "pomdp_py",
    ]
    code = f"import sys; sys.modules.update(dict.fromkeys({extras})); import imm_lib"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_the_core_never_imports_experiments():
    core = [path for path in (ROOT / "imm_lib").rglob("*.py") if "experiments" not in path.parts]
    texts = {
        path.name: path.read_text(encoding="utf-8") for path in core if path.name != "__main__.py"
    }
    assert len(texts) > 8
    assert not [
        name
        for name, text in texts.items()
        if re.search(r"^\s*(from|import) imm_lib.*experiments", text, re.M)
    ]


def test_missing_data_is_one_sentence_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(imm.data, "available", lambda name: name == "here")
    assert needs.absent([]) == needs.absent(["here"]) == ""
    assert re.fullmatch(
        r"needs the gone data, .* set IMM_DATA to a folder that holds gone/",
        needs.absent(["here", "gone"]),
    )


REPORT = "<testsuites><testsuite>{}</testsuite></testsuites>"
PASSED, CELL = "<testcase name='t'/>", "<testcase name='Cell 0'/>"
SKIPPED = "<testcase name='t'><skipped/></testcase>"
NO_BROWSER = "<testcase name='t'><skipped message='needs Chromium on the path'/></testcase>"
FAILED = "<testcase name='t'><failure/></testcase>"


@pytest.mark.parametrize(
    ("unit", "notebooks", "book", "cells", "complaint"),
    [
        (PASSED + SKIPPED, PASSED + CELL * 3, PASSED, 3, None),
        (PASSED + FAILED, PASSED + CELL, PASSED, 1, "unit: 1 failed"),
        ("", PASSED + CELL, PASSED, 1, "unit: no test passed"),
        (PASSED, PASSED + CELL, PASSED, 2, "2 code cells, but 1 ran"),
        (
            PASSED,
            PASSED + CELL,
            PASSED + SKIPPED,
            1,
            "book: a check of the rendered pages was skipped",
        ),
        (PASSED, PASSED + CELL, FAILED, 1, "book: 1 failed"),
    ],
)
def test_the_gate_counts_what_ran(tmp_path, unit, notebooks, book, cells, complaint):
    for name, cases in (("unit", unit), ("notebooks", notebooks), ("book", book)):
        (tmp_path / f"{name}.xml").write_text(REPORT.format(cases), encoding="utf-8")
    line, complaints = summary.summarise(tmp_path, cells, pages=4)
    if complaint is None:
        assert complaints == []
        assert (
            line == "gate: 3 tests passed, 1 skipped, 3 notebook cells re-executed, 4 pages checked"
        )
    else:
        assert any(complaint in c for c in complaints)


def test_without_a_browser_the_gate_passes_and_says_so(tmp_path):
    for name, cases in (
        ("unit", PASSED),
        ("notebooks", PASSED + CELL),
        ("book", PASSED + NO_BROWSER * 2),
    ):
        (tmp_path / f"{name}.xml").write_text(REPORT.format(cases), encoding="utf-8")
    line, complaints = summary.summarise(tmp_path, 1, pages=4)
    assert complaints == [] and "0 skipped, 2 without a browser" in line


def test_no_tracked_file_is_large():
    """Packages and data do not belong into the history, from which nothing can be taken out
    again.
    """
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    sizes = {
        name: (ROOT / name).stat().st_size
        for name in names.split("\0")
        if name and (ROOT / name).is_file()
    }
    assert {name: size for name, size in sizes.items() if size > 2**20} == {}


def chapter(path: Path, source: str) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    return path


def test_rerun_writes_outputs_without_timestamps_and_keeps_a_failing_chapter(
    tmp_path, monkeypatch, capsys
):
    good, bad = (
        chapter(tmp_path / "01-good.ipynb", "print(6 * 7)"),
        chapter(tmp_path / "02-bad.ipynb", "1 / 0"),
    )
    before = bad.read_bytes()
    monkeypatch.setattr(rerun, "BOOK", tmp_path)
    assert rerun.main(keep=True) == "failed: 02-bad.ipynb"
    assert bad.read_bytes() == before
    install, cell = nbformat.read(good, as_version=4).cells
    assert install.source == rerun.INSTALL and install.execution_count is None
    assert cell.outputs[0].text == "42\n"
    assert cell.execution_count == 1
    assert "execution" not in cell.metadata
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "01-good.ipynb",
        "02-bad.ipynb",
        "chapters.json",
    ]
    spent = json.loads((tmp_path / "chapters.json").read_text())
    assert list(spent) == ["01-good"] and spent["01-good"]["peak_memory_bytes"] > 1e7
    noted = (tmp_path / "chapters.json").read_bytes()
    capsys.readouterr()
    assert rerun.main("1") is None  # and not also 10 to 19
    told = capsys.readouterr().out
    assert "[1/1, about" in told and "all text as before" in told
    notebook = nbformat.read(good, as_version=4)
    notebook.cells[1].source = "print(6 * 8)"
    nbformat.write(notebook, good)
    assert rerun.main("01-good") is None and "other text in cells 1\n" in capsys.readouterr().out
    assert (tmp_path / "chapters.json").read_bytes() == noted
    assert rerun.main("77") == "no chapter in book/ starts with '77'"


def test_wheel_and_sdist_hold_the_library_and_nothing_else(tmp_path):
    """Built and installed apart from the checkout, without network: imported from there, with its
    type marker.
    """
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT / "imm_lib", tree / "imm_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = "import setuptools.build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, check=True)
    (sdist,), (wheel,) = (tree / "dist").glob("*.tar.gz"), (tree / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("imm_lib/py.typed") for name in archive.getnames())
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "imm_lib"
    }  # and its .dist-info
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        wheel,
    ]
    subprocess.run(pip, check=True, capture_output=True)
    assert (site / "imm_lib" / "py.typed").is_file()
    use = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import imm_lib; "
        "print(imm_lib.__file__, imm_lib.__version__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    file, version = found.stdout.split()
    assert Path(file).is_relative_to(site) and version == imm.__version__
    run = [sys.executable, "-m", "imm_lib", "show", "--help"]
    kept = {name: value for name, value in os.environ.items() if name != "IMM_RESULTS"}
    told = subprocess.run(
        run, cwd=tmp_path, env={**kept, "PYTHONPATH": str(site)}, capture_output=True, text=True
    ).stdout
    assert "by default results (IMM_RESULTS changes it)" in " ".join(told.split())
    assert "book/results of its repository; the package has none" in " ".join(told.split())
