"""One address in every place, or none; and the cell that installs the library in either case."""

import importlib.util
import re
import shutil
from pathlib import Path

import adopt
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[1]
GITHUB, GITLAB = "https://github.com/Some-One/imm.book", "https://gitlab.com/group/part/imm"
OTHER = "https://git.example.org:8443/someone/imm"


@pytest.fixture
def tree(tmp_path):
    """A copy of the files that name the address, in which none is adopted."""
    for path in adopt.rewritten(ROOT, ""):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    assert adopt.main("none", tmp_path) is None
    return tmp_path


def texts(root):
    return {path: path.read_text(encoding="utf-8") for path in root.rglob("*") if path.is_file()}


def test_all_places_agree():
    expected = adopt.rewritten(ROOT, adopt.adopted())
    assert len(expected) > 20
    assert [path.name for path, text in expected.items() if path.read_text("utf-8") != text] == []


def test_no_other_place_names_an_address(tree):
    """What looks like a repository of this project's is found nowhere once none is adopted."""
    assert not [path for path, text in texts(tree).items() if "imm-book/imm-book" in text]


@pytest.mark.parametrize("address", [GITHUB, GITLAB, OTHER])
def test_an_address_is_written_everywhere_and_taken_back(tree, address):
    before = texts(tree)
    assert adopt.main(f"{address}.git/", tree) is None
    assert adopt.adopted(tree) == address
    named = {
        path.relative_to(tree).as_posix() for path, text in texts(tree).items() if address in text
    }
    expected = {path.relative_to(tree).as_posix() for path in before}
    assert named == expected - ({"_config.yml"} if address == OTHER else set())
    assert adopt.rewritten(tree, address) == texts(tree)
    assert adopt.main(GITHUB, tree) is None and adopt.adopted(tree) == GITHUB  # another one
    assert not [path for path, text in texts(tree).items() if address in text and address != GITHUB]
    assert adopt.main("none", tree) is None
    assert adopt.adopted(tree) == "" and texts(tree) == before


@pytest.mark.parametrize(
    ("address", "launchers", "site"),
    [
        ("none", None, None),
        (GITHUB, True, "https://some-one.github.io/imm.book/"),
        ("https://github.com/me/Me.github.io", True, "https://me.github.io/"),
        (GITLAB, False, None),
        (OTHER, None, None),
    ],
)
def test_the_configuration_has_what_leads_somewhere(tree, address, launchers, site):
    assert adopt.main(address, tree) is None
    config = yaml.safe_load((tree / "_config.yml").read_text(encoding="utf-8"))
    known = launchers is not None
    assert config.get("repository", {}).get("url") == (address if known else None)
    assert config["html"].get("use_issues_button", False) == known
    assert config["html"].get("use_repository_button", False) == known
    launch = config.get("launch_buttons", {})
    assert bool(launch.get("binderhub_url")) == known
    assert bool(launch.get("colab_url")) == bool(launchers)
    sphinx = config["sphinx"]
    assert sphinx["config"].get("ogp_site_url") == site
    assert ("sphinxext.opengraph" in sphinx["extra_extensions"]) == (site is not None)
    assert any(key.startswith("ogp") for key in sphinx["config"]) == (site is not None)
    citation = yaml.safe_load((tree / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.get("url") == site


@pytest.mark.parametrize(
    "address",
    [
        "",
        "git@github.com:a/b.git",
        "http://github.com/a/b",
        "https://github.com/a",
        "https://github.com/a/b c",
        "https://github.com/a/b;rm",
        'https://github.com/a/b"',
        "https://github.com/a/{b}",
        "github.com/a/b",
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_written(tree, address):
    before = texts(tree)
    assert adopt.main(address, tree).startswith("error: REPOSITORY must be https://HOST/OWNER/NAME")
    assert texts(tree) == before


def test_a_place_that_is_gone_is_named(tree):
    (tree / "README.md").write_text("no place", encoding="utf-8")
    before = texts(tree)
    assert adopt.main(GITHUB, tree) == "error: README.md must have one place 'adopt: clone'"
    assert texts(tree) == before


def test_the_workflow_adopts_its_own_address():
    workflow = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text(encoding="utf-8"))
    commands = [step.get("run", "") for step in workflow["jobs"]["gate"]["steps"]]
    own = 'make adopt REPOSITORY="$GITHUB_SERVER_URL/$GITHUB_REPOSITORY"'
    assert commands.index(own) < commands.index(".ci/run")
    text = (ROOT / ".github/workflows/book.yml").read_text(encoding="utf-8")
    assert not re.search(r"https://", text)


class Shell:
    """What a cell asks of IPython."""

    def __init__(self):
        self.calls = []

    def system(self, command):
        self.calls.append(("system", command))

    def run_line_magic(self, name, line):
        self.calls.append((name, line))


def installed(monkeypatch, address, here):
    """Run the installing cell where the library is not installed; returns what it asked for."""
    shell = Shell()
    source = TransformerManager().transform_cell(adopt.install(address))
    assert all(len(line) <= 78 for line in adopt.install("").splitlines())
    assert len(adopt.install("").splitlines()) <= 25
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.path", [])
    monkeypatch.chdir(here)
    exec(compile(source, "install", "exec"), {"get_ipython": lambda: shell})
    return shell.calls


def test_a_chapter_that_came_alone_says_what_to_do_or_fetches_the_book(monkeypatch, tmp_path):
    with pytest.raises(ModuleNotFoundError, match=r"open the chapter in a clone .*make book"):
        installed(monkeypatch, "", tmp_path)
    clone, folder, pip = installed(monkeypatch, GITHUB, tmp_path)
    assert clone == ("system", "git clone -q --depth 1 {REPOSITORY} imm-book")
    assert folder == ("cd", "-q imm-book/book")
    assert pip[0] == "pip" and pip[1].endswith('[data,plot,experiments,transport]"')


@pytest.mark.parametrize("address", ["", GITHUB])
def test_in_a_checkout_the_cell_installs_it(monkeypatch, tmp_path, address):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "book").mkdir()
    ((name, _),) = installed(monkeypatch, address, tmp_path / "book")
    assert name == "pip"
