"""``make pages``: write the generated pages from the stored results."""

from pages import write

write()
