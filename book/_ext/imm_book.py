"""What the book asks of Sphinx beyond its settings: bars in docstrings, and no thebe on the pages."""

import re


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
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
