"""Fine-tuning a masked language model on GLUE with IMM (Table 2): tasks, encoder, prefixes, target,
training.
"""

from imm_lib.experiments.masked import readings, runs, scores, target, tasks, toy
from imm_lib.experiments.masked.encoder import MaskedLM, load, tiny
from imm_lib.experiments.masked.prefixes import Prefixes
from imm_lib.experiments.masked.scores import premise
from imm_lib.experiments.masked.tasks import Example
from imm_lib.experiments.masked.terms import ARMS, Causal, masked_words
from imm_lib.experiments.masked.training import Settings, fine_tune, predict, pretrain

EXPERIMENTS = runs.EXPERIMENTS
