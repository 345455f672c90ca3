"""Restricted models that can be matched."""

from imm_lib.targets.fast_informed_bound import FastInformedBound, FinitePOMDP
from imm_lib.targets.kneser_ney import KneserNeyBigram

__all__ = ["FastInformedBound", "FinitePOMDP", "KneserNeyBigram"]
