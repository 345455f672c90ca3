"""What the book asks of Sphinx beyond its settings: bars in docstrings, no thebe, works listed by author and year."""

import re

from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style
from pybtex.style.labels import BaseLabelStyle


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
    """Docstrings write P(y|s) as the paper does; reStructuredText would take the bars for its own."""
    example = False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            parts = re.split(r"(``.*?``)", line)
            lines[i] = "".join(p if p.startswith("``") else p.replace("|", r"\|") for p in parts)


def drop_thebe(app, pagename, templatename, context, doctree):
    """The book has no live cells, and thebe's set-up, which jupyter-book adds twice, is an error in the browser."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script.filename} {script.attributes.get('body', '')}"
    ]


def setup(app):
    """Register with Sphinx."""
    register_plugin("pybtex.style.formatting", "author_year", BookStyle)
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
