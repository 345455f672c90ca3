"""What the paper prints about its LSTM of 1,500 units on the Penn Treebank: perplexities."""

TABLE_1 = {
    "none": {"valid": 81.6, "test": 77.5},
    "KN noising": {"valid": 76.7, "test": 73.9},
    "IMM": {"valid": 76.0, "test": 73.3},
}
"""With the whole history; the best of several restarts."""

TABLE_5 = {
    "train": {"none": 260.16, "IMM": 237.55, "Kneser-Ney": 92.19},
    "valid": {"none": 339.24, "IMM": 302.30, "Kneser-Ney": 199.28},
    "test": {"none": 309.56, "IMM": 278.48, "Kneser-Ney": 185.71},
}
"""Of the induced bigram, without and with IMM, and of the restricted model itself."""

ARMS = {"none": "baseline", "KN noising": "KN noising", "IMM": "cached states, λ = 0.2"}
"""The arm of the experiment ``language-paper`` that stands for a method of Tables 1 and 5."""
