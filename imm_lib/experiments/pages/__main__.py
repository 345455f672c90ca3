"""python -m imm_lib.experiments.pages: write the generated pages from the stored results."""

from imm_lib.experiments.pages import write

write()
