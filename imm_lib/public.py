"""The public names of the library, which ``imm_lib`` itself offers when one is asked for."""

from imm_lib import data, divergences, means, plotting, premise, results, worth
from imm_lib.baselines import Interpolation, ReverseKD, SampledNoising
from imm_lib.clipping import clipped_backward
from imm_lib.coarse import coarsen
from imm_lib.contexts import BeliefContexts, Contexts, GroupedContexts, KernelContexts
from imm_lib.device import device
from imm_lib.estimators import ExactIMM, SampledIMM
from imm_lib.fused import FusedIMM
from imm_lib.fused_sampled import FusedSampledIMM
from imm_lib.induced import crosstalk, imm_risk, induce, noising_risk, undo_class_weights
from imm_lib.integrations.classifier import from_sklearn
from imm_lib.mixed import MixedContexts
from imm_lib.surrogates import MovingAverageIMM, SerializedIMM
from imm_lib.tabular import TabularWorld, counterexample
from imm_lib.targets import FastInformedBound, FinitePOMDP, KneserNeyBigram
