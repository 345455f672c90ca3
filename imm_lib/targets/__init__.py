"""Restricted models that can be matched."""

from imm_lib.targets.kneser_ney import KneserNeyBigram

__all__ = ["KneserNeyBigram"]
