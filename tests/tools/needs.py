"""Why a test or chapter is skipped: a data set that is not on this machine. Nothing is ever
downloaded for a test.
"""

import imm_lib as imm


def absent(names: list[str]) -> str:
    """One sentence about the first data set that is missing; empty when all are here."""
    for name in names:
        if not imm.data.available(name):
            return (
                f"needs the {name} data, which is not on this machine: set IMM_DATA to a folder "
                f"that holds {name}/"
            )
    return ""
