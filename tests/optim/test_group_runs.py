"""Whole runs with an optimizer for each group: from a config, interrupted and resumed, over two ranks; rejections."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from added_callback import added_callback
from programs import Program
from resuming import Signal, assert_same_checkpoints, curves
from thinned import thinned

from bytelm.errors import CheckpointError, Interrupted
from bytelm.optim import ByGroup, Muon

CONFIG = """
model:
  gpt: {tie_embeddings: false}
  optimizer:
    class_path: ByGroup
    init_args:
      groups:
        hidden: {class_path: Muon, init_args: {lr: 0.02, variance_reduction: true, split_qkv: heads}}
        embedding: {class_path: AdamW, init_args: {lr: 3e-3, fused: true}}
        vector: {class_path: my_optimizers.Signs, init_args: {lr: 1e-3}}
      default: {class_path: Lion, init_args: {lr: 1e-4}}
trainer:
  callbacks: my_optimizers.Weights
"""
OWN = """
import hashlib
from pathlib import Path

import torch
from lightning.pytorch import Callback


class Signs(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                age = self.state[param].setdefault("age", torch.tensor(0.0))
                age += 1
                param.sub_(group["lr"] / age * param.grad.sign())


class Weights(Callback):
    def on_fit_end(self, trainer, model):
        weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        Path(f"weights{trainer.global_rank}").write_text(hashlib.sha256(weights).hexdigest())
"""
BY_GROUP = ("--config", "by_group.yaml")
STEPS = ("--time_budget.limit", "9 steps", "--trainer.val_check_interval", "3", "--lr_schedule", "Linear")


@pytest.fixture(autouse=True)
def files(folder):
    Path("by_group.yaml").write_text(CONFIG)
    Path("my_optimizers.py").write_text(OWN)


def test_a_config_names_an_optimizer_for_each_group(run):
    cli = run(*BY_GROUP, *STEPS)
    (optimizer,) = cli.trainer.optimizers
    assert type(optimizer) is ByGroup
    assert [(group["name"], group["optimizer"], group["initial_lr"]) for group in optimizer.param_groups] == [
        ("hidden", "Muon", 0.02),
        ("embedding", "AdamW", 3e-3),
        ("head", "Lion", 1e-4),
        ("vector", "Signs", 1e-3),
    ]
    logged = curves("runs/tiny+by_group/version_0")
    for name, peak in (("hidden", 0.02), ("vector", 1e-3)):
        rates = [value for _, value in logged[f"lr/{name}"]]
        assert rates == pytest.approx([peak * (1 - step / 9) for step in range(9)], rel=1e-6)
    again = run("--config", "runs/tiny+by_group/version_0/config.yaml", *STEPS, "--experiment", "again")
    for name, value in cli.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_options_of_a_group_are_one_option_away(run):
    cli = run(*BY_GROUP, "--model.optimizer.groups.hidden.lr", "0.5", "--model.optimizer.default", "SGD")
    groups = {group["name"]: group for group in cli.trainer.optimizers[0].param_groups}
    assert (groups["hidden"]["lr"], groups["hidden"]["split_qkv"]) == (0.5, "heads")
    assert groups["head"]["optimizer"] == "SGD"


def test_a_cut_run_resumes_exactly(run):
    run(*BY_GROUP, *STEPS, "--experiment", "uncut")
    with added_callback(Signal("on_train_batch_end", 4, signal.SIGTERM)), pytest.raises(Interrupted):
        run(*BY_GROUP, *STEPS, "--experiment", "cut")
    run(*BY_GROUP, *STEPS, "--experiment", "cut", "--ckpt_path", "last")
    assert_same_checkpoints("runs/uncut/version_0", "runs/cut/version_0")
    assert curves("runs/uncut/version_0") == curves("runs/cut/version_0")


def test_the_name_muon_is_that_of_bytelms(run):
    cli = run(*BY_GROUP, "--model.optimizer.groups.hidden", "Muon")
    assert next(type(part) for part in cli.trainer.optimizers[0].optimizers) is Muon
    cli = run(*BY_GROUP, "--model.optimizer.groups.hidden", "torch.optim.Muon")
    assert next(type(part) for part in cli.trainer.optimizers[0].optimizers) is torch.optim.Muon


REJECTED = {
    "--model.optimizer.groups.hiden=AdamW": [
        "model.optimizer: 'ByGroup' cannot be used; groups.hiden: the network has no such group",
        "accepted: hidden, embedding, head, vector",
    ],
    "--model.optimizer.default=null": ["groups.head: the network's group head has no optimizer", "or a default"],
    "--model.optimizer.default=LBFGS": ["group head: LBFGS evaluates the loss several times a step"],
    "--model.optimizer.groups.embedding=Muom": ["'Muom' is not known; did you mean Muon?", "or an import path"],
    "--model.optimizer.groups.hidden.lrr=1": ["lrr: unknown key; did you mean lr?", "split_qkv"],
    "--model.optimizer.groups.hidden.split_qkv=x": ["split_qkv: 'x' is not accepted; accepted: heads, bool"],
    "--model.optimizer.groups.hidden.ns_coefficients=x": ["hidden: ns_coefficients: 'x' cannot be used; accepted"],
    "--model.optimizer.groups.vector=Muon": ["group vector: Muon needs matrices", "has the shape (16,)"],
    "--model.optimizer=SparseAdam": ["it takes sparse gradients alone, and the group hidden has dense ones; accepted"],
    "--model.optimizer.groups.vector=SparseAdam": ["'SparseAdam' cannot be used", "the group vector has dense ones"],
    "--model.optimizer=Muon": ["model.optimizer: 'Muon' cannot be used; Muon needs matrices"],
    "--model.optimizer.groups.hidden.lr=-1": ["model.optimizer.groups.hidden.lr: -1.0 cannot be used; accepted: 0 or"],
}


@pytest.mark.parametrize("option", thinned(REJECTED, 5))
def test_invalid_settings_are_rejected_in_one_line(rejected, option):
    line = rejected(*BY_GROUP, option)
    assert [part for part in REJECTED[option] if part not in line] == [], line
    assert not Path("runs").exists()


def test_unknown_options_of_muon_adamw_are_rejected_with_those_that_it_takes(rejected):
    line = rejected("--model.optimizer=MuonAdamW", "--model.optimizer.momentun=0.9")
    assert "model.optimizer.momentun: unknown key; did you mean momentum? accepted: lr, adamw_lr" in line


def test_resuming_with_another_optimizer_of_a_group_is_rejected(run, rejected, capsys):
    run(*BY_GROUP)
    capsys.readouterr()
    resuming = (*BY_GROUP, "--ckpt_path", "last", "--time_budget.limit", "8 steps")
    line = rejected(*resuming, "--model.optimizer.groups.hidden", "AdamW", status=CheckpointError.exit_status)
    assert "model.optimizer.groups.hidden: bytelm.optim.Muon in the checkpoint, torch.optim.AdamW now" in line
    # A group that has an entry of its own now, and was left to the default before.
    with pytest.raises(CheckpointError, match="the optimizer of group head is Lion in the checkpoint, AdamW now"):
        run(*resuming, "--model.optimizer.groups.head", "AdamW")


@pytest.mark.parametrize("optimizer", ["AdamW", "MuonAdamW"])
def test_a_run_resumes_from_a_checkpoint_of_the_former_groups_to_the_bit(run, optimizer):
    options = ("--model.gpt.tie_embeddings", "false", "--model.optimizer", optimizer)
    run(*options, "--experiment", "cut")
    path = Path("runs/cut/version_0/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    (embedding,), (head,) = ([group for group in groups if group["name"] == name] for name in ("embedding", "head"))
    embedding["params"] += head["params"]
    groups.remove(head)
    for group in groups:
        group.pop("optimizer", None)
    torch.save(checkpoint, path)
    more = ("--time_budget.limit", "8 steps")
    cli = run(*options, *more, "--experiment", "cut", "--ckpt_path", "last")
    assert [group["name"] for group in cli.trainer.optimizers[0].param_groups][:3] == ["hidden", "embedding", "head"]
    uncut = run(*options, *more, "--experiment", "uncut")
    for name, value in uncut.model.state_dict().items():
        assert torch.equal(value, cli.model.state_dict()[name]), name


def test_two_ranks_train_as_one_network(folder):
    ranks = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--time_budget.limit", "3 steps")
    program = Program([sys.executable, "-m", "bytelm", "fit", "--config", "tiny.yaml", *BY_GROUP, *ranks], cwd=folder)
    assert program.wait(timeout=180) == 0
    assert Path("weights0").read_text() == Path("weights1").read_text()
    record = json.loads(Path("runs/tiny+by_group/version_0/record.json").read_text())
    assert (record["status"], record["total_steps"]) == ("completed", 3)
