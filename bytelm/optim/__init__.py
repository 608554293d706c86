"""Optimizers and parameter groups.

A config can name any optimizer that accepts parameter groups: those of torch.optim, `Lion` of lion-pytorch, your own by
its import path, or one for each group (ByGroup). `weight_decay` applies to tensors of two or more dimensions; vectors,
scalars and tables never decay (groups.py).
"""

from lion_pytorch import Lion
from torch.optim import Adam, AdamW, NAdam

from bytelm.optim.by_group import ByGroup, OptimizerFactory
from bytelm.optim.groups import ParamGroup, ParamGroups, RowSplits, param_groups, regroup
from bytelm.optim.muon import Muon
from bytelm.optim.muon_adamw import MuonAdamW
from bytelm.optim.rejected import rejected
from bytelm.optim.row_adagrad import RowAdagrad
from bytelm.optim.sparse import check_dense_gradients, takes_sparse_gradients

__all__ = [
    "Adam",
    "AdamW",
    "ByGroup",
    "Lion",
    "Muon",
    "MuonAdamW",
    "NAdam",
    "OptimizerFactory",
    "ParamGroup",
    "ParamGroups",
    "RowAdagrad",
    "RowSplits",
    "check_dense_gradients",
    "param_groups",
    "regroup",
    "rejected",
    "takes_sparse_gradients",
]
