"""The parts of a GPT, which a config names: one kind a file. contract.py defines the kinds.

A part of your own is a module with the `forward` of its kind, in a file of yours, named by its import path.
"""

# Loaded here, because no default of a signature names their parts: configs can then name them by their class names.
from bytelm.parts import bf16 as bf16
from bytelm.parts import bigram_hash as bigram_hash
from bytelm.parts import bitnet as bitnet
from bytelm.parts import gated_values as gated_values
from bytelm.parts import hyper_connections as hyper_connections
from bytelm.parts import linear_attention as linear_attention
from bytelm.parts import logit_cap as logit_cap
from bytelm.parts import residual_scalars as residual_scalars
from bytelm.parts import uniform_init as uniform_init
