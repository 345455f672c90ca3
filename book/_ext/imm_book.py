"""What the book asks of Sphinx beyond its settings: bars in docstrings, no thebe, works listed by
author and year, pages at their old addresses.
"""

import re
from pathlib import Path

from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style
from pybtex.style.labels import BaseLabelStyle

# Chapters that were once elsewhere: a page at the old address leads to the new one.
MOVED = {
    "04-gradients": "05-estimators",
    "05-kneser-ney": "13-kneser-ney",
    "06-logistic-regression": "11-logistic-regression",
    "07-lambda-and-table-4": "17-lambda-and-table-4",
    "08-serialized-against-sampled": "18-serialized-against-sampled",
    "09-poor-restricted-model": "07-poor-restricted-model",
    "10-the-grid": "12-the-grid",
    "11-pomdps-help-mdps": "19-pomdps-help-mdps",
    "12-going-further": "20-the-grid-further",
    "13-lstm-language-models": "14-lstm-language-models",
    "14-cost-and-fidelity": "21-cost-and-fidelity",
    "16-worth": "08-worth",
    "17-choosing-lambda": "06-choosing-lambda",
    "18-divergences": "22-divergences",
    "19-several-restrictions": "23-several-restrictions",
    "20-real-side-information": "16-real-side-information",
    "21-your-own-project": "04-your-first-real-data",
    "22-recipes": "10-recipes",
}
_LEADS = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Moved</title>
<meta http-equiv="refresh" content="0; url={new}.html">
<link rel="canonical" href="{new}.html">
<p>This chapter is now at <a href="{new}.html">{new}</a>.</p>
</html>
"""


class AuthorYear(BaseLabelStyle):
    """Labels as the text cites: one or two names, or the first and "et al.", and the year."""

    def format_labels(self, sorted_entries):
        """One label for each entry."""
        for entry in sorted_entries:
            names = [" ".join(person.last_names) for person in entry.persons["author"]]
            several = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
            yield f"{several}, {entry.fields['year']}"


class BookStyle(Style):
    """Plain, but for the labels."""

    default_label_style = AuthorYear


def escape_bars(app, what, name, obj, options, lines):
    """Docstrings write P(y|s) as the paper does; reStructuredText would take the bars for its
    own.
    """
    example = False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            parts = re.split(r"(``.*?``)", line)
            lines[i] = "".join(p if p.startswith("``") else p.replace("|", r"\|") for p in parts)


def drop_thebe(app, pagename, templatename, context, doctree):
    """The book has no live cells, and thebe's set-up, which jupyter-book adds twice, is an error in
    the browser.
    """
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script.filename} {script.attributes.get('body', '')}"
    ]


def keep_old_addresses(app, exception):
    """Write a page that leads to the new address at each old one."""
    if exception is not None or app.builder.format != "html":
        return
    for old, new in MOVED.items():
        page = Path(app.outdir) / "book" / f"{old}.html"
        page.write_text(_LEADS.format(new=new), encoding="utf-8")


def setup(app):
    """Register with Sphinx."""
    register_plugin("pybtex.style.formatting", "author_year", BookStyle)
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", keep_old_addresses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
