"""Induced Model Matching: let a small accurate model of few features help to train a large one.

Four nouns: where extended contexts come from (``contexts``), the induced model and its risk
(``induced``), how the risk's gradient is estimated (``estimators``), and the restricted model that
is matched (``targets``).
"""

from imm_lib import data, divergences, plotting, premise, results, worth
from imm_lib.baselines import Interpolation, ReverseKD, SampledNoising
from imm_lib.clipping import clipped_backward
from imm_lib.contexts import BeliefContexts, Contexts, GroupedContexts, KernelContexts
from imm_lib.device import device
from imm_lib.estimators import ExactIMM, SampledIMM
from imm_lib.fused import FusedIMM
from imm_lib.fused_sampled import FusedSampledIMM
from imm_lib.induced import crosstalk, imm_risk, induce, noising_risk
from imm_lib.integrations.classifier import from_sklearn
from imm_lib.mixed import MixedContexts
from imm_lib.surrogates import MovingAverageIMM, SerializedIMM
from imm_lib.tabular import TabularWorld, counterexample
from imm_lib.targets import FastInformedBound, FinitePOMDP, KneserNeyBigram

__version__ = "0.1.0"

__all__ = [
    "BeliefContexts",
    "Contexts",
    "ExactIMM",
    "FastInformedBound",
    "FinitePOMDP",
    "FusedIMM",
    "FusedSampledIMM",
    "GroupedContexts",
    "Interpolation",
    "KernelContexts",
    "KneserNeyBigram",
    "MixedContexts",
    "MovingAverageIMM",
    "ReverseKD",
    "SampledIMM",
    "SampledNoising",
    "SerializedIMM",
    "TabularWorld",
    "clipped_backward",
    "counterexample",
    "crosstalk",
    "data",
    "device",
    "divergences",
    "from_sklearn",
    "imm_risk",
    "induce",
    "noising_risk",
    "plotting",
    "premise",
    "results",
    "worth",
]
