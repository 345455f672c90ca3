"""What the paper prints about language models, and its schedule of the weight. The numbers of
logistic regression: :mod:`imm_lib.experiments.logistic.paper`.
"""

from imm_lib import checks


def schedule(n: int) -> float:
    """The ratio ρ = λ / (1 + λ) at n data points, ρ = 0.818 - 0.0111 n (Appendix D.1.1), at least
    0.
    """
    return max(0.0, 0.818 - 0.0111 * checks.count("n", n))


TABLE_1 = {
    "none": {"valid": 81.6, "test": 77.5},
    "KN noising": {"valid": 76.7, "test": 73.9},
    "IMM": {"valid": 76.0, "test": 73.3},
}
"""Perplexities of an LSTM of 1,500 units on the Penn Treebank, with the whole history; the best of
several restarts.
"""

TABLE_2 = {
    "CoLA": {"base": ("52.1", "4.0"), "+MLM": ("55.0", "3.0"), "+MLM+IMM": ("60.0", "1.0")},
    "MRPC": {"base": ("88.9", "2.0"), "+MLM": ("89", "1.0"), "+MLM+IMM": ("90", "1.0")},
    "QNLI": {"base": ("90.5", "2.0"), "+MLM": ("91.0", "2.0"), "+MLM+IMM": ("93.5", "1.0")},
    "RTE": {"base": ("66", "3.0"), "+MLM": ("68", "2.0"), "+MLM+IMM": ("71", "1.0")},
}
"""BERT base on GLUE by task and arm, means of restarts and their ±, per cent, as printed; Matthews'
correlation for CoLA, F1 for MRPC, accuracy otherwise.
"""

TABLE_5 = {
    "train": {"none": 260.16, "IMM": 237.55, "Kneser-Ney": 92.19},
    "valid": {"none": 339.24, "IMM": 302.30, "Kneser-Ney": 199.28},
    "test": {"none": 309.56, "IMM": 278.48, "Kneser-Ney": 185.71},
}
"""Of the induced bigram, without and with IMM, and of the restricted model itself."""

ARMS = {"none": "baseline", "KN noising": "KN noising", "IMM": "cached states, λ = 0.2"}
"""The arm of the experiment ``language-paper`` that stands for a method of Tables 1 and 5."""
