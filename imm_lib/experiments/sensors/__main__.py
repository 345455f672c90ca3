"""Draws the front page's picture from the stored result."""

import imm_lib as imm
from imm_lib.experiments.sensors import write_picture

if __name__ == "__main__":
    write_picture(
        imm.results.load("sensors"), imm.results.folder().parent / "_static" / "payoff.svg"
    )
