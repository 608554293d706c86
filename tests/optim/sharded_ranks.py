"""The program of each of two ranks in test_sharded.py."""

import copy
import warnings

import torch
import torch.distributed as dist
from small_gpt import backward, tiny, train
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from bytelm.optim import ByGroup, Lion, Muon, MuonAdamW, param_groups

OPTIMIZERS = {
    "MuonAdamW": MuonAdamW,
    "options": lambda groups: MuonAdamW(
        groups, variance_reduction=True, cautious_weight_decay=True, split_qkv="heads", ns_coefficients="polar_express"
    ),
    "nanochat": lambda groups: MuonAdamW(
        groups, variance_reduction="longer", cautious_weight_decay=True, adjust_weight_decay=True, split_qkv=True
    ),
    "ByGroup": lambda groups: ByGroup(groups, {"hidden": Muon, "vector": Lion}, torch.optim.AdamW),
}
FULL = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def network():
    """Among its matrices are one that does not divide evenly, one of a single row, and a stack."""
    gpt = tiny(d_ff=21)
    block = gpt.blocks[0]
    block.row = torch.nn.Parameter(torch.linspace(-1, 1, 16)[None])
    block.stack = torch.nn.Parameter(torch.linspace(-1, 1, 3 * 16 * 16).view(3, 16, 16))
    block.register_forward_hook(lambda block, _, x: x * (1 + block.row) + x @ block.stack.sum(0))
    return gpt


def sharded(gpt, mesh):
    for block in gpt.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(gpt, mesh=mesh)


def check(name):
    mesh = init_device_mesh("cpu", (2,))
    whole, spread = network(), sharded(network(), mesh)
    optimizers = [OPTIMIZERS[name](param_groups(gpt)) for gpt in (whole, spread)]
    for gpt, optimizer in zip((whole, spread), optimizers, strict=True):
        train(gpt, optimizer, range(3))
    for (path, p), q in zip(whole.named_parameters(), spread.parameters(), strict=True):
        assert torch.equal(p, q.full_tensor()), (name, path)
    # As a checkpoint takes the state, and gives it back.
    state = copy.deepcopy(get_optimizer_state_dict(spread, optimizers[1], options=FULL))
    resumed = sharded(network(), mesh)
    other = OPTIMIZERS[name](param_groups(resumed))
    with torch.no_grad():
        for p, q in zip(resumed.parameters(), spread.parameters(), strict=True):
            p.copy_(q)
    set_optimizer_state_dict(resumed, other, optim_state_dict=state, options=FULL)
    for gpt, optimizer in ((spread, optimizers[1]), (resumed, other)):
        backward(gpt, 3)
        optimizer.step()
    for p, q in zip(spread.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p.full_tensor(), q.full_tensor())


def run(rank, meeting):
    """One of the ranks, which meet in a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for name in OPTIMIZERS:
        check(name)
    dist.destroy_process_group()
