"""The book's generated pages: what is stored, as MyST Markdown. ``make pages`` writes them, and a
test compares.
"""

from collections.abc import Callable

from imm_lib import results
from pages import execution, headline, reproduction

PAGES: dict[str, Callable[[], str]] = {
    "reproduction.md": reproduction.page,
    "execution.md": execution.page,
    "_includes/headline.md": headline.page,
}
"""By file below book/."""


def write() -> None:
    """Write every page beside the chapters, each whole or not at all."""
    for name, page in PAGES.items():
        results.write_bytes(results.folder().parent / name, page().encode())
