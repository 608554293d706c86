"""Parameter groups, and MuonAdamW as exactly torch's Muon and AdamW, and RowAdagrad, side by side."""

import copy
import functools
import io

import pytest
import torch
from torch import nn

from bytelm.gpt import GPT
from bytelm.optim import Lion, MuonAdamW, RowAdagrad, param_groups
from bytelm.parts.embedding import HashedNGrams
from bytelm.parts.position import Learned

OPTIONS = {
    "lr": 0.05,
    "weight_decay": 0.2,
    "momentum": 0.9,
    "adamw_lr": 0.01,
    "adamw_betas": (0.8, 0.9),
    "adamw_weight_decay": 0.3,
    "adamw_eps": 1e-6,
    "table_lr": 0.2,
}
N_GRAMS = functools.partial(HashedNGrams, buckets=64, dim=4)


def tiny(**options):
    torch.manual_seed(0)
    return GPT(d_model=16, n_heads=2, n_layers=2, vocab_size=32, max_seq_len=8, position=Learned, **options)


def backward(gpt, step):
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(step))
    gpt.zero_grad()
    loss = nn.functional.cross_entropy(gpt(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    return loss


def names_by_group(gpt):
    names = {id(p): name for name, p in gpt.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in param_groups(gpt, gpt.blocks)}


def test_groups_are_hidden_matrices_other_matrices_and_vectors():
    groups = names_by_group(tiny(tie_embeddings=False, head_bias=True))
    matrices = ("attention.qkv", "attention.out", "feedforward.up", "feedforward.down")
    assert groups["hidden"] == {f"blocks.{i}.{matrix}.weight" for i in range(2) for matrix in matrices}
    assert groups["embedding"] == {"embedding.weight", "position.weight", "head.weight"}
    everything = {name for name, _ in tiny(tie_embeddings=False, head_bias=True).named_parameters()}
    assert groups["vector"] == everything - groups["hidden"] - groups["embedding"]


def test_vectors_alone_are_exempt_from_weight_decay():
    gpt = tiny()
    decays = {p.ndim: set() for p in gpt.parameters()}
    for group in torch.optim.AdamW(param_groups(gpt, gpt.blocks), weight_decay=0.3).param_groups:
        for p in group["params"]:
            decays[p.ndim].add(group["weight_decay"])
    assert decays == {1: {0.0}, 2: {0.3}}


def test_a_tied_weight_is_trained_once():
    gpt = tiny()
    listed = [id(p) for group in param_groups(gpt, gpt.blocks) for p in group["params"]]
    assert sorted(listed) == sorted({id(p) for p in gpt.parameters()})


def test_tables_are_a_group_without_weight_decay():
    groups = names_by_group(tiny(embedding=N_GRAMS))
    assert groups["table"] == {"embedding.table.weight"}
    assert groups["embedding"] == {"embedding.weight", "embedding.project.weight", "position.weight"}
    gpt = tiny(embedding=N_GRAMS)
    optimizer = torch.optim.SGD(param_groups(gpt, gpt.blocks), weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups if group["name"] == "table"] == [0.0]
    gpt.embedding.table.requires_grad_(False)
    assert "table" not in names_by_group(gpt)
    assert "embedding.table.weight" not in set().union(*names_by_group(gpt).values())


def test_frozen_parameters_and_empty_groups_are_left_out():
    gpt = tiny()
    gpt.blocks.requires_grad_(False)
    gpt.norm.requires_grad_(False)
    assert names_by_group(gpt) == {"embedding": {"embedding.weight", "position.weight"}}


def test_tensors_of_three_dimensions_decay_but_are_not_for_muon():
    network = nn.Sequential(nn.Conv1d(2, 3, kernel_size=4))
    groups = {group["name"]: group["params"] for group in param_groups(network, network)}
    assert [p.ndim for p in groups["embedding"]] == [3]
    assert set(groups) == {"embedding", "vector"}


@pytest.mark.parametrize(
    "muon_options", [{}, {"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False, "ns_steps": 3}], ids=str
)
def test_muon_adamw_is_muon_and_adamw_and_row_adagrad_to_the_bit(muon_options):
    gpt = tiny(embedding=N_GRAMS)
    twin = copy.deepcopy(gpt)
    optimizer = MuonAdamW(param_groups(gpt, gpt.blocks), **OPTIONS, **muon_options)
    hidden, embedding, vector, table = param_groups(twin, twin.blocks)
    muon = torch.optim.Muon([hidden], lr=0.05, weight_decay=0.2, momentum=0.9, **muon_options)
    adamw = torch.optim.AdamW([embedding, vector], lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    row_adagrad = RowAdagrad([table], lr=0.2)
    others = (muon, adamw, row_adagrad)
    for step in range(5):
        for group in [*optimizer.param_groups, *(group for other in others for group in other.param_groups)]:
            group["lr"] *= 0.9  # as a schedule does
        backward(gpt, step)
        backward(twin, step)
        optimizer.step()
        for other in others:
            other.step()
    start = tiny(embedding=N_GRAMS)
    for (name, p), q, before in zip(gpt.named_parameters(), twin.parameters(), start.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert not torch.equal(p, before), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_adamw_continues_from_its_state_to_the_bit(dtype):
    gpt = tiny(embedding=N_GRAMS).to(dtype)
    optimizer = MuonAdamW(param_groups(gpt, gpt.blocks), **OPTIONS)
    for step in range(3):
        backward(gpt, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = copy.deepcopy(gpt)
    other = MuonAdamW(param_groups(resumed, resumed.blocks))  # the state brings its own options
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        for network, its_optimizer in ((gpt, optimizer), (resumed, other)):
            backward(network, step)
            its_optimizer.step()
    for (name, p), q in zip(gpt.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name


def test_muon_adamw_evaluates_its_closure_once_and_returns_the_loss():
    gpt, twin = tiny(), tiny()
    optimizer, same = (MuonAdamW(param_groups(network, network.blocks)) for network in (gpt, twin))
    losses = []

    def closure():
        losses.append(backward(gpt, step=0))
        return losses[-1]

    assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    backward(twin, step=0)
    same.step()
    assert all(torch.equal(p, q) for p, q in zip(gpt.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("kept", ["hidden", "embedding", "table"])
def test_muon_adamw_works_with_one_part_alone(kept):
    gpt = tiny(embedding=N_GRAMS)
    nn.init.normal_(gpt.embedding.table.weight)  # for a gradient of the projection
    optimizer = MuonAdamW([group for group in param_groups(gpt, gpt.blocks) if group["name"] == kept])
    before = copy.deepcopy(gpt)
    backward(gpt, step=0)
    optimizer.step()
    stepped = {name for name, p in gpt.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert stepped == names_by_group(gpt)[kept]


def test_lion_steps_by_the_sign_and_decays_matrices_alone():
    gpt = tiny()
    optimizer = Lion(param_groups(gpt, gpt.blocks), lr=0.01, weight_decay=0.5)
    before = copy.deepcopy(gpt)
    backward(gpt, step=0)
    optimizer.step()
    for name, p in gpt.named_parameters():
        decay = 1 - 0.01 * 0.5 if p.ndim >= 2 else 1
        torch.testing.assert_close(p, before.get_parameter(name) * decay - 0.01 * p.grad.sign(), msg=name)


def test_muon_adamw_can_be_copied_and_takes_no_groups_later():
    network = nn.Sequential(nn.Linear(4, 4))
    optimizer = MuonAdamW(param_groups(network, network))
    copied = copy.deepcopy(optimizer)
    for group in copied.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    before = [param.clone() for group in copied.param_groups for param in group["params"]]
    copied.step()
    after = [param for group in copied.param_groups for param in group["params"]]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    with pytest.raises(RuntimeError, match="all of its parameter groups"):
        optimizer.add_param_group({"name": "late", "params": [nn.Parameter(torch.ones(2))]})
