"""The repository's address, in every place that names it: ``make adopt REPOSITORY=https://...``.

A place in a text lies between two comments, ``adopt: NAME`` and ``adopt: end``. Without an address
(``REPOSITORY=none``) there is nothing between them, so that no button of the book leads nowhere.
The address is read back from ``CITATION.cff``.
"""

import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import yaml

from imm_lib import results

ROOT = Path(__file__).resolve().parents[2]
NONE = "none"
# Whose pages, buttons and launchers the book's theme knows.
HOSTS = ("github.com", "gitlab.com")
_FORM = re.compile(r"https://[\w.-]+(:\d+)?(/[\w.-]+){2,}", re.ASCII)

BLOCKS: dict[str, dict[str, str]] = {
    "_config.yml": {
        "repository": """\
repository:
  url: {address}
  branch: main
launch_buttons:
  notebook_interface: jupyterlab
  binderhub_url: https://mybinder.org
  colab_url: {colab}
""",
        "buttons": """\
  use_repository_button: true
  use_issues_button: true
""",
        "extension": """\
    - sphinxext.opengraph
""",
        "cards": """\
    ogp_site_url: {pages}
    ogp_site_name: Induced Model Matching
    ogp_image: _static/card.png
    ogp_image_alt: >-
      Two see-saws. Matched directly, the discs are crushed onto the pivot; matched on average,
      they balance and stay apart.
    ogp_social_cards: {{ enable: false }}
""",
    },
    "README.md": {
        "clone": """\

    git clone {address}.git && cd {name}

""",
    },
    "CITATION.cff": {
        "repository": """\
repository-code: "{address}"
""",
        "pages": """\
url: "{pages}"
""",
    },
    "pyproject.toml": {
        "urls": """\
[project.urls]
Repository = "{address}"
""",
    },
}
"""By file and name of the place, what stands there."""

INSTALL = """\
# For Colab and Binder, where nothing is installed yet; a checkout with its
# environment passes by.
import importlib.util
import sys
from pathlib import Path

REPOSITORY = "{address}"  # make adopt writes it

if importlib.util.find_spec("imm_lib") is None:
    if not Path("../pyproject.toml").is_file():  # the notebook came alone
        if not REPOSITORY:
            raise ModuleNotFoundError(
                "imm_lib is not installed, and this copy of the book has no "
                "address to get it from: open the chapter in a clone of the "
                "book's repository, after `make book` there"
            )
        !git clone -q --depth 1 {{REPOSITORY}} imm-book
        %cd -q imm-book/book
    root = str(Path("..").resolve())
    %pip install -q "{{root}}[data,plot,experiments,transport]"
    # the checkout has the stored results that the chapter shows
    sys.path.insert(0, root)"""


def cleaned(address: str) -> str:
    """The address without ``.git`` and a slash at its end, "" for "none".

    Raises:
        ValueError: it is not https://HOST/OWNER/NAME.
    """
    if address == NONE:
        return ""
    short = address.rstrip("/").removesuffix(".git")
    if not _FORM.fullmatch(short):
        raise ValueError(f"REPOSITORY must be https://HOST/OWNER/NAME or {NONE}, got {address!r}")
    return short


def pages(address: str) -> str:
    """Where the workflow publishes the book of a repository at GitHub; "" elsewhere."""
    host, (owner, *_, name) = urlsplit(address).netloc, urlsplit(address).path[1:].split("/")
    site = f"{owner.lower()}.github.io"
    if host != "github.com":
        return ""
    return f"https://{site}/" if name.lower() == site else f"https://{site}/{name}/"


def block(file: str, name: str, address: str) -> str:
    """What stands in a place; "" where it would lead nowhere."""
    host = urlsplit(address).netloc
    needed = {"buttons": HOSTS, "cards": HOSTS[:1], "extension": HOSTS[:1], "pages": HOSTS[:1]}
    if file == "_config.yml" and name == "repository":
        needed[name] = HOSTS
    if not address or host not in needed.get(name, (host,)):
        return ""
    colab = "https://colab.research.google.com" if host == "github.com" else '""'
    values = {"address": address, "name": address.rpartition("/")[2], "pages": pages(address)}
    return BLOCKS[file][name].format(colab=colab, **values)


def install(address: str) -> str:
    """The source of the cell that installs the library where a chapter was opened elsewhere."""
    return INSTALL.format(address=address)


def adopted(root: Path = ROOT) -> str:
    """The address that was adopted last, "" for none."""
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    return citation.get("repository-code", "")


def rewritten(root: Path, address: str) -> dict[Path, str]:
    """What each file must hold for that address: the texts and the chapters."""
    found = {}
    for file, names in BLOCKS.items():
        text = (root / file).read_text(encoding="utf-8")
        for name in names:
            place = re.compile(
                rf"(\n[^\n]*adopt: {name}\b[^\n]*\n).*?([^\n]*adopt: end\b)", re.DOTALL
            )
            if len(place.findall(text)) != 1:
                raise ValueError(f"{file} must have one place 'adopt: {name}'")
            content = block(file, name, address)
            text = place.sub(lambda match, content=content: match[1] + content + match[2], text)
        found[root / file] = text
    for path in sorted((root / "book").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.get("id") == "install":
                cell.source = install(address)
        found[path] = nbformat.writes(notebook) + "\n"
    return found


def main(address: str, root: Path = ROOT) -> str | None:
    """Write an address into every place; returns an error sentence, or None."""
    try:
        address = cleaned(address)
        texts = rewritten(root, address)
    except ValueError as error:
        return f"error: {error}"
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        results.write_bytes(path, texts[path].encode())
    print(f"{address or 'no address'}: {len(changed)} of {len(texts)} files written")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
