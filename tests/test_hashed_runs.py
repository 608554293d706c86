"""Whole runs with hashed n-grams: rejected settings, sparse and dense gradients, clipping, resuming, two ranks."""

import json

import pytest
import torch
from thinned import thinned

MUON = ("--model.optimizer", "MuonAdamW")


def hashed(**options):
    return (
        "--model.gpt.embedding",
        json.dumps({"class_path": "HashedNGrams", "init_args": {"buckets": 256, "dim": 4} | options}),
    )


def weights(cli):
    return cli.model.state_dict()


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam"])
def test_optimizers_without_sparse_gradients_are_rejected(rejected, optimizer):
    line = rejected(*hashed(), "--model.optimizer", optimizer)
    assert f"model.gpt.embedding.sparse: True cannot be used; {optimizer} does not support sparse gradients" in line
    assert "accepted: false, or the optimizer MuonAdamW" in line


def test_orders_are_named_in_the_line(rejected):
    assert "orders: [1, 2] cannot be used" in rejected(*hashed(orders=[1, 2]), *MUON)


def test_any_optimizer_trains_on_dense_gradients(run):
    assert weights(run(*hashed(sparse=False), "--model.optimizer", "AdamW"))["gpt.embedding.table.weight"].any()


@pytest.mark.parametrize("clip", thinned(["1.0", "null"], 1))
@pytest.mark.parametrize(
    ("algorithm", "accumulate"),
    thinned([("norm", "1"), ("norm", "2"), ("value", "2"), ("value", "1")], 2, several=True),
)
def test_sparse_gradients_equal_dense_ones(run, clip, algorithm, accumulate):
    options = (*MUON, "--trainer.gradient_clip_val", clip, "--trainer.gradient_clip_algorithm", algorithm)
    options += ("--trainer.accumulate_grad_batches", accumulate)
    a, b = (weights(run(*hashed(sparse=sparse), *options)) for sparse in (True, False))
    for name in a:
        if accumulate == "1":
            assert torch.equal(a[name], b[name]), name
        else:
            torch.testing.assert_close(a[name], b[name])


def test_resuming_is_bit_identical(run):
    whole = weights(run(*hashed(), *MUON, "--time_budget.limit", "8 steps"))
    run(*hashed(), *MUON, "--time_budget.limit", "4 steps")
    resumed = weights(run(*hashed(), *MUON, "--time_budget.limit", "8 steps", "--ckpt_path", "last"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_fsdp_rejects_sparse_gradients(rejected):
    assert "accepted: false, with fsdp" in rejected(*hashed(), *MUON, "--trainer.strategy", "fsdp")
