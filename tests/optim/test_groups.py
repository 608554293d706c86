"""Parameter groups: declared ones, the defaults, and checkpoints of earlier groups."""

from typing import ClassVar

import pytest
import torch
from small_gpt import N_GRAMS, backward, saved, tiny, train
from torch import nn

from bytelm.errors import CheckpointError
from bytelm.optim import Lion, MuonAdamW, ParamGroup, RowAdagrad, param_groups, regroup, takes_sparse_gradients
from bytelm.parts.embedding import ValueEmbedding


def names_by_group(network):
    names = {id(p): name for name, p in network.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in param_groups(network)}


def test_a_gpt_has_hidden_matrices_embeddings_a_head_and_vectors():
    gpt = tiny(tie_embeddings=False, head_bias=True, embedding=ValueEmbedding)
    groups = names_by_group(gpt)
    matrices = ("attention.qkv", "attention.out", "feedforward.up", "feedforward.down")
    assert list(groups) == ["hidden", "embedding", "head", "vector"]
    assert groups["hidden"] == [f"blocks.{i}.{matrix}.weight" for i in range(2) for matrix in matrices]
    assert groups["embedding"] == ["embedding.weight", "embedding.token_values.weight", "position.weight"]
    assert groups["head"] == ["head.weight"]
    others = {name for name, _ in gpt.named_parameters()}
    assert set(groups["vector"]) == others - {*groups["hidden"], *groups["embedding"], *groups["head"]}
    assert "head.bias" in groups["vector"]


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_every_parameter_is_trained_once(tie_embeddings):
    gpt = tiny(tie_embeddings=tie_embeddings)
    listed = [id(p) for group in param_groups(gpt) for p in group["params"]]
    assert sorted(listed) == sorted({id(p) for p in gpt.parameters()})
    assert ("head" in names_by_group(gpt)) is not tie_embeddings


def test_only_tensors_of_two_or_more_dimensions_decay():
    gpt = tiny(tie_embeddings=False, embedding=N_GRAMS)
    optimizer = torch.optim.SGD(param_groups(gpt), weight_decay=0.3)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"hidden": 0.3, "embedding": 0.3, "head": 0.3, "vector": 0.0, "table": 0.0}


def test_tables_are_a_group_that_is_not_clipped():
    gpt = tiny(embedding=N_GRAMS)
    groups = names_by_group(gpt)
    assert groups["table"] == ["embedding.table.weight"]
    assert groups["embedding"] == ["embedding.weight", "embedding.project.weight", "position.weight"]
    assert {group["name"]: group.get("clip", True) for group in param_groups(gpt)} == {
        "hidden": True,
        "embedding": True,
        "vector": True,
        "table": False,
    }
    gpt.embedding.table.requires_grad_(False)
    assert "table" not in names_by_group(gpt)


def test_frozen_parameters_and_empty_groups_are_left_out():
    gpt = tiny()
    gpt.blocks.requires_grad_(False)
    gpt.norm.requires_grad_(False)
    assert names_by_group(gpt) == {"embedding": ["embedding.weight", "position.weight"]}


class Experts(nn.Module):
    optimizer_groups: ClassVar = {"inner.router": "router", "gain": "gains", "inner.router.bias": "hidden"}

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.scale = nn.Parameter(torch.ones(()))
        self.stack = nn.Parameter(torch.ones(3, 2, 2))
        self.inner = nn.ModuleDict({"router": nn.Linear(2, 3), "out": nn.Linear(2, 2)})
        self.register_parameter("absent", None)


class Around(nn.Module):
    optimizer_groups: ClassVar = {
        "experts": "hidden",
        "experts.inner.out": "outer",
        "experts.gain": "never",
        "first": "first",
    }

    def __init__(self):
        super().__init__()
        self.experts = Experts()
        self.first = nn.Linear(2, 2)


def test_the_declaration_nearest_to_a_parameter_holds():
    assert names_by_group(Around()) == {
        "hidden": ["experts.stack", "experts.inner.router.bias"],  # a vector that was named itself
        "gains": ["experts.gain"],  # the inner module's declaration, though the outer one names the parameter
        "router": ["experts.inner.router.weight"],  # the inner module's, though the outer one covers it, too
        "outer": ["experts.inner.out.weight"],  # the longer path's
        "first": ["first.weight"],
        "vector": ["experts.inner.out.bias", "first.bias"],
        "scalar": ["experts.scale"],
    }


def test_groups_of_other_names_come_as_they_appear_between_the_usual_ones():
    assert [group["name"] for group in param_groups(Around())] == [
        *("hidden", "gains", "router", "outer", "first", "vector", "scalar")
    ]


def test_declarations_may_be_those_of_an_object_and_may_name_absent_options():
    network = Experts()
    network.optimizer_groups = {"absent": "hidden", "inner": "inside"}
    assert names_by_group(network)["inside"] == ["inner.router.weight", "inner.out.weight"]


@pytest.mark.parametrize("path", ["missing", "inner.missing.weight", "forward"])
def test_declarations_of_missing_parameters_are_rejected(path):
    network = Experts()
    network.optimizer_groups = {path: "hidden"}
    with pytest.raises(
        ValueError, match=rf"Experts\.optimizer_groups: '{path}' is not one of its modules or parameters"
    ):
        param_groups(network)


def test_a_stack_of_matrices_in_a_block_is_hidden_and_elsewhere_an_embedding():
    gpt = tiny(n_layers=1)
    gpt.blocks[0].feedforward.experts = nn.Parameter(torch.zeros(3, 4, 4))
    gpt.filters = nn.Conv1d(2, 3, kernel_size=4)
    groups = names_by_group(gpt)
    assert "blocks.0.feedforward.experts" in groups["hidden"]
    assert "filters.weight" in groups["embedding"]


def test_groups_say_how_fused_matrices_divide():
    hidden, *others = param_groups(tiny())
    heads = [[8, 8], [8, 8], [8, 8]]
    assert hidden.row_splits == {0: heads, 4: heads}
    assert [tuple(hidden["params"][i].shape) for i in (0, 4)] == [(48, 16), (48, 16)]
    assert [group.row_splits for group in others] == [{}, {}]


def test_row_splits_that_do_not_add_up_are_rejected():
    network = nn.Module()
    network.fused = nn.Linear(4, 6)
    network.row_splits = {"fused": [[2, 2], [1]]}
    with pytest.raises(ValueError, match=r"row_splits: fused.weight has 6 rows, but \[\[2, 2\], \[1\]\] are declared"):
        param_groups(network)


def former_groups(gpt):
    """The groups of earlier versions, without those of the head and of scalars."""
    groups = {group["name"]: group for group in param_groups(gpt)}
    order = {id(p): i for i, p in enumerate(gpt.parameters())}
    for name, former in (("head", "embedding"), ("scalar", "vector")):
        if name in groups:
            groups[former]["params"] += groups.pop(name)["params"]
            groups[former]["params"].sort(key=lambda p: order[id(p)])
    for group in groups.values():
        group.pop("clip", None)
    return list(groups.values())


def with_scalars(**options):
    """With parameters of every kind in between those of the former groups."""
    gpt = tiny(tie_embeddings=False, **options)
    for block in gpt.blocks:
        block.gain = nn.Parameter(torch.ones(()))
        block.register_forward_hook(lambda block, _, x: x * block.gain)
    gpt.late = nn.Parameter(torch.zeros(2, 2))
    return gpt


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, MuonAdamW], ids=["AdamW", "MuonAdamW"])
def test_a_checkpoint_of_the_former_groups_resumes_exactly(optimizer):
    gpt, twin = (with_scalars(embedding=N_GRAMS) for _ in range(2))
    if optimizer is torch.optim.AdamW:
        gpt, twin = with_scalars(), with_scalars()
    former = optimizer(former_groups(gpt))
    assert [group["name"] for group in former.param_groups][:3] == ["hidden", "embedding", "vector"]
    train(gpt, former, range(3))
    now = optimizer(param_groups(twin))
    now.load_state_dict(regroup(saved(former), twin))
    twin.load_state_dict(gpt.state_dict())
    for network, its_optimizer in ((gpt, former), (twin, now)):
        train(network, its_optimizer, range(3, 6))
    for (name, p), q in zip(gpt.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert [(group["name"], group.get("clip", True)) for group in now.param_groups] == [
        (group["name"], group.get("clip", True)) for group in param_groups(twin)
    ]


def test_groups_that_changed_in_other_ways_are_rejected_in_one_line():
    gpt = tiny(tie_embeddings=False)
    state = torch.optim.AdamW(param_groups(gpt)).state_dict()
    gpt.optimizer_groups = {}
    rejected = "^ckpt_path: the optimizer's state has other parameter groups: "
    former = r"hidden \(8\), embedding \(2\), head \(1\), vector \(18\) in the checkpoint"
    with pytest.raises(CheckpointError, match=rf"{rejected}{former}, embedding \(11\), vector \(18\) now$"):
        regroup(state, gpt)
    gpt.optimizer_groups = {"blocks": "mine"}
    with pytest.raises(CheckpointError, match=rf"{rejected}{former}, embedding \(3\), mine \(8\), vector \(18\) now$"):
        regroup(state, gpt)


def test_a_state_of_groups_without_names_stays_as_it_is():
    gpt = tiny()
    state = torch.optim.AdamW(gpt.parameters()).state_dict()
    assert regroup(state, gpt) == state


def lion(gradients, lr, weight_decay):
    """Chen et al. 2023: yields the factor of the weights and the update of each step."""
    average = 0.0
    for gradient in gradients:
        yield 1 - lr * weight_decay, lr * (0.9 * average + 0.1 * gradient).sign()
        average = 0.99 * average + 0.01 * gradient


def nadam(gradients, lr, weight_decay):
    """Dozat 2016, with AdamW's weight decay: the schedule of the momentum has the decay 0.004."""
    mean, square, product = 0.0, 0.0, 1.0
    for t, gradient in enumerate(gradients, start=1):
        now, later = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * step)) for step in (t, t + 1))
        product *= now
        mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient.square()
        direction = later * mean / (1 - product * later) + (1 - now) * gradient / (1 - product)
        yield 1 - lr * weight_decay, lr * direction / ((square / (1 - 0.95**t)).sqrt() + 1e-8)


@pytest.mark.parametrize(
    ("optimizer", "options", "formula"),
    [
        (Lion, {"betas": (0.9, 0.99)}, lion),
        (torch.optim.NAdam, {"betas": (0.9, 0.95), "decoupled_weight_decay": True}, nadam),
    ],
)
def test_lion_and_nadam_are_their_formulas_and_decay_matrices_alone(optimizer, options, formula):
    gpt = tiny().double()
    optimizer = optimizer(param_groups(gpt), lr=0.01, weight_decay=0.5, **options)
    expected = {name: p.detach().clone() for name, p in gpt.named_parameters()}
    gradients = {name: [] for name in expected}
    for step in range(3):
        backward(gpt, step=step)
        for name, p in gpt.named_parameters():
            gradients[name].append(p.grad.clone())
        optimizer.step()
    for name, p in gpt.named_parameters():
        for decay, update in formula(gradients[name], 0.01, 0.5 if p.ndim >= 2 else 0.0):
            expected[name] = expected[name] * decay - update
        torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-7, msg=name)  # NAdam keeps a float32


def test_groups_survive_a_copy_and_merge_into_plain_dictionaries():
    group = ParamGroup({"name": "hidden", "params": []}, {0: [[1]]})
    assert (group.copy(), dict(group)) == ({"name": "hidden", "params": []},) * 2
    optimizer = RowAdagrad(param_groups(nn.Linear(2, 2, bias=False)))
    assert type(optimizer.state_dict()["param_groups"][0]) is dict


@pytest.mark.parametrize("split", [False, True, "heads"])
def test_whether_sparse_gradients_are_taken_is_asked_for_the_groups_there_are(split):
    groups = param_groups(tiny(embedding=N_GRAMS))
    assert takes_sparse_gradients(lambda params: MuonAdamW(params, split_qkv=split), groups)
    assert not takes_sparse_gradients(torch.optim.AdamW, groups)
