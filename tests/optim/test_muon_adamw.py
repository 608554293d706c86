"""MuonAdamW is exactly Muon, AdamW and RowAdagrad side by side; checkpoints of earlier versions load."""

import copy
import threading

import pytest
import torch
from small_gpt import N_GRAMS, assert_same_weights, assert_trained_alike, backward, saved, tiny, train
from torch import nn

from bytelm.optim import MuonAdamW, RowAdagrad, param_groups

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


@pytest.mark.parametrize(
    "muon_options", [{}, {"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False, "ns_steps": 3}], ids=str
)
def test_it_is_muon_and_adamw_and_row_adagrad_to_the_bit(muon_options):
    gpt = tiny(embedding=N_GRAMS, tie_embeddings=False)
    twin = copy.deepcopy(gpt)
    optimizer = MuonAdamW(param_groups(gpt), **OPTIONS, **muon_options)
    hidden, embedding, head, vector, table = param_groups(twin)
    muon = torch.optim.Muon([hidden], lr=0.05, weight_decay=0.2, momentum=0.9, **muon_options)
    adamw = torch.optim.AdamW([embedding, head, vector], lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    row_adagrad = RowAdagrad([table], lr=0.2)
    others = (muon, adamw, row_adagrad)
    assert_trained_alike(gpt, [optimizer], twin, others, start=tiny(embedding=N_GRAMS, tie_embeddings=False))


def test_muons_own_options_are_taken():
    gpt = tiny()
    optimizer = MuonAdamW(param_groups(gpt), variance_reduction=True, split_qkv="heads")
    train(gpt, optimizer, range(2))
    hidden = optimizer.param_groups[0]
    assert (hidden["variance_reduction"], hidden["split_qkv"]) == (True, "heads")
    assert all("second_moment" in optimizer.state[param] for param in hidden["params"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_resumes_from_its_state_to_the_bit(dtype):
    gpt = tiny(embedding=N_GRAMS).to(dtype)
    optimizer = MuonAdamW(param_groups(gpt), **OPTIONS)
    train(gpt, optimizer, range(3))
    resumed = copy.deepcopy(gpt)
    other = MuonAdamW(param_groups(resumed))  # the state brings its own options
    other.load_state_dict(saved(optimizer))
    train(gpt, optimizer, range(3, 6))
    train(resumed, other, range(3, 6))
    assert_same_weights(gpt, resumed)


def former_state(gpt, parts):
    """The state of MuonAdamW before it was a ByGroup: its parts' states, one after the other."""
    state, groups, n_params = {}, [], 0
    for part in parts:
        own = part.state_dict()
        state |= {key + n_params: value for key, value in own["state"].items()}
        groups += [{**group, "params": [key + n_params for key in group["params"]]} for group in own["param_groups"]]
        n_params += sum(len(group["params"]) for group in part.param_groups)
    for group in groups:
        group.pop("clip", None)
    return copy.deepcopy({"state": state, "param_groups": groups})


def test_a_state_that_an_earlier_version_wrote_resumes_exactly():
    gpt = tiny(embedding=N_GRAMS)
    hidden, embedding, vector, table = param_groups(gpt)
    parts = (torch.optim.Muon([hidden]), torch.optim.AdamW([embedding, vector]), RowAdagrad([table]))
    for step in range(3):
        backward(gpt, step)
        for part in parts:
            part.step()
    state = former_state(gpt, parts)
    assert list(state["param_groups"][0]) == [
        *("name", "lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"),
        "params",
    ]
    resumed = copy.deepcopy(gpt)
    other = MuonAdamW(param_groups(resumed))
    other.load_state_dict(state)
    for step in range(3, 6):
        backward(gpt, step)
        for part in parts:
            part.step()
    train(resumed, other, range(3, 6))
    assert_same_weights(gpt, resumed)
    again = MuonAdamW(param_groups(resumed))
    again.load_state_dict(saved(other))
    assert [group["optimizer"] for group in again.param_groups] == ["Muon", "AdamW", "AdamW", "RowAdagrad"]
    assert not again.param_groups[-1]["clip"]


def test_an_option_of_a_group_that_the_network_does_not_have_is_noted():
    note = "table_lr has no effect, because the network has no group `table`"
    assert [*MuonAdamW.without_effect({"table_lr": 0.3, "lr": 0.1}, {"hidden", "embedding"})] == [note]
    assert not [*MuonAdamW.without_effect({"table_lr": 0.3}, {"hidden", "table"})]
    assert not [*MuonAdamW.without_effect({"table_lr": 0.1}, {"hidden"})], "its default"


@pytest.mark.parametrize("kept", ["hidden", "embedding", "table"])
def test_it_works_with_one_part_alone(kept):
    gpt = tiny(embedding=N_GRAMS)
    nn.init.normal_(gpt.embedding.table.weight)  # for a gradient of the projection
    groups = [group for group in param_groups(gpt) if group["name"] == kept]
    optimizer = MuonAdamW(groups)
    before = copy.deepcopy(gpt)
    train(gpt, optimizer, [0])
    stepped = {id(p) for name, p in gpt.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert stepped == {id(p) for p in groups[0]["params"]}


def test_on_several_threads_adamw_steps_beside_muon_and_computes_the_same():
    gpt = tiny(tie_embeddings=False)
    twin = copy.deepcopy(gpt)
    optimizers = [MuonAdamW(param_groups(network), **OPTIONS) for network in (gpt, twin)]
    stepped = set()
    for each in optimizers[0].optimizers:
        if isinstance(each, torch.optim.AdamW):
            each.register_step_pre_hook(
                lambda *_: stepped.add((threading.current_thread().name, torch.get_num_threads()))
            )
    usual = torch.get_num_threads()
    for network, optimizer, threads in zip((gpt, twin), optimizers, (2, 1), strict=True):
        for step in range(3):
            backward(network, step)
            torch.set_num_threads(threads)
            optimizer.step()
            torch.set_num_threads(usual)
    assert_same_weights(gpt, twin)
    assert stepped
    assert all(name.startswith("single") and threads == 1 for name, threads in stepped)
