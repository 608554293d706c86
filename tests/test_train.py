"""Training from Python: `fit` with configs and with objects."""

import json
import math
import os
import re
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import programs
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
)
from memory_logger import MemoryLogger
from torch.utils.data import default_collate

import bytelm
from bytelm import fit, load
from bytelm.callbacks import Cosine, Divergence, Samples, Schedules, TimeBudget
from bytelm.data.corpora import Bytes
from bytelm.errors import CheckpointError, ConfigError, DataError, UsageError
from bytelm.gpt import GPT
from bytelm.inference.model import Model
from bytelm.runs.checkpoint_io import AtomicCheckpointIO
from bytelm.runs.read import read_run
from bytelm.system.process import process_age
from bytelm.system.streams import can_redraw


def gpt():
    return GPT(d_model=16, n_heads=2, n_layers=1, d_ff=32, max_seq_len=32)


def corpus():
    return Bytes("corpus.txt", batch_size=4, seq_len=32, eval_bytes=1024)


def test_the_package_lists_its_names():
    assert {"fit", "load", "Model"} <= set(dir(bytelm))
    assert bytelm.fit is fit
    with pytest.raises(AttributeError, match="no attribute 'train_all'"):
        bytelm.train_all  # noqa: B018


def test_a_config_trains_as_on_the_command_line(trained, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])  # as in a notebook
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="LightningCLI's args")
        again = fit("tiny.yaml")
    assert again.folder == Path("runs/tiny/version_1")
    scores = [json.loads(Path(f"runs/tiny/version_{n}/record.json").read_text())["val_bpb"] for n in (0, 1)]
    assert again.val_bpb == scores[0] == scores[1]
    assert again.load("cpu").score("to be") == load("runs/tiny/version_1", device="cpu").score("to be")
    assert again.record["total_time_secs"] <= process_age() + 1


def test_mappings_are_configs_too(folder):
    both = fit("tiny.yaml", {"time_budget.limit": "2 steps", "model": {"gpt": {"n_layers": 2}}}, experiment="two")
    assert both.folder == Path("runs/two/version_0")
    assert both.record["total_steps"] == 2
    assert len(both.module.gpt.blocks) == 2
    alone = fit({"base": "tiny.yaml", "time_budget": {"limit": "1 steps"}})
    assert alone.folder == Path("runs/python/version_0")
    assert alone.record["total_steps"] == 1


TWO_RANKS = """
import os
from pathlib import Path

from bytelm import fit
from bytelm.data.corpora import Bytes
from bytelm.gpt import GPT
from bytelm.runs import record as records

if __name__ == "__main__":
    if os.environ.get("LOCAL_RANK") == "1":
        del records.read  # rank 0 may write the record later, or to a disk of its own
    two = {"accelerator": "cpu", "strategy": "ddp", "devices": 2}
    of_config = fit("tiny.yaml", {"trainer": two, "time_budget.limit": "2 steps"}, experiment="two")
    data = Bytes("corpus.txt", batch_size=4, seq_len=32, eval_bytes=1024)
    model = GPT(d_model=16, n_heads=2, n_layers=1, d_ff=32, max_seq_len=32)
    of_objects = fit(model=model, data=data, limit="3 steps", **two)
    said = [f"{run.folder} {run.record['total_steps']} {run.record['world_size']}" for run in (of_config, of_objects)]
    Path(f"rank{of_config.trainer.global_rank}.txt").write_text("\\n".join(said))
"""


def test_all_ranks_return_the_record_that_rank_0_writes_at_the_end(folder):
    Path("train_with_bytelm.py").write_text(TWO_RANKS)
    environment = os.environ | {"PYTHONPATH": str(programs.PROJECT), "OMP_NUM_THREADS": "1"}
    ended = programs.run([sys.executable, "-m", "train_with_bytelm"], env=environment)
    assert ended.returncode == 0, ended.stderr
    for rank in (0, 1):
        said = Path(f"rank{rank}.txt").read_text().splitlines()
        assert said == ["runs/two/version_0 2 2", "runs/python/version_0 3 2"]


class Steps(Callback):
    def on_fit_start(self, trainer, pl_module):
        self.lrs = []

    def on_train_batch_end(self, trainer, *_):
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_objects_train_under_a_budget(folder):
    steps, network = Steps(), gpt()
    run = fit(
        model=network,
        data=corpus(),
        limit=["4 steps", "1h"],
        lr_schedule=Cosine(),
        callbacks=[steps],
        experiment="mine",
        accelerator="cpu",
    )
    assert run.folder == Path("runs/mine/version_0")
    assert {path.name for path in run.folder.iterdir() if "events" not in path.name} == {
        *("record.json", "validations.jsonl", "checkpoints", ".lock")
    }
    assert len(steps.lrs) == run.record["total_steps"] == 4
    assert steps.lrs == sorted(steps.lrs, reverse=True)
    assert steps.lrs[-1] < steps.lrs[0] / 2
    assert run.record["corpus"]["name"] == "corpus.txt"
    assert (run.record["limit"], read_run(run.folder).budget) == (
        "4 steps, 3600s",
        "4 steps, 3600s",
    )  # it has no config
    assert run.module.gpt is network
    model = Model(network.eval(), load_bytes())
    assert model.score("to be").bits_per_byte < 9
    with pytest.raises(ConfigError, match=r"it was made from objects, and has no config; accepted: run\.module"):
        run.load()
    best = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(best["gpt.embedding.weight"], network.embedding.weight)


def load_bytes():
    from bytelm.data.tokenizer import ByteTokenizer

    return ByteTokenizer()


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbers(pl.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=2)


def test_any_module_and_any_data_train(folder):
    run = fit(model=Line(), data=Numbers(), limit="6 steps", accelerator="cpu", enable_progress_bar=False)
    assert run.record["total_steps"] == 6
    assert run.val_bpb is None
    lazy = Line()
    lazy.layer = torch.nn.LazyLinear(999)
    run = fit(model=lazy, data=Numbers(), limit="1 steps", accelerator="cpu", enable_progress_bar=False)
    assert run.record["num_params_M"] == 0.002


class Validated(Line):
    """A module that notes its steps and validations, and whose first validation has no finite score."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append("step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", 1.0 if "step" in self.seen else math.nan)
        self.seen.append("validation")


class ThreeToValidate(Numbers):
    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(3, 1))


def test_a_module_of_the_users_is_validated_on_two_batches_before_training(folder):
    options = {"limit": "1 steps", "accelerator": "cpu", "enable_model_summary": False}
    run = fit(model=Validated(), data=ThreeToValidate(), **options)
    assert run.module.seen == [*["validation"] * 2, "step", *["validation"] * 3]
    assert run.record["val_loss"] == 1.0
    run = fit(model=Validated(), data=ThreeToValidate(), num_sanity_val_steps=0, **options)
    assert run.module.seen == ["step", *["validation"] * 3]
    assert fit(model=gpt(), data=corpus(), **options).trainer.num_sanity_val_steps == 0


class Configured(Line):
    """A module with callbacks of its own."""

    def __init__(self, *callbacks):
        super().__init__()
        self.own = callbacks

    def configure_callbacks(self):
        return self.own


def test_the_callbacks_that_a_module_configures_are_the_users(folder):
    options = {"data": Numbers(), "limit": "3 steps", "accelerator": "cpu", "enable_model_summary": False}
    bar, mine, steps = TQDMProgressBar(), Samples(max_new_tokens=0), Steps()
    run = fit(model=Configured(bar, mine, steps), callbacks=[Steps()], **options)
    callbacks = run.trainer.callbacks
    assert [each for each in callbacks if isinstance(each, Steps | Samples | ProgressBar)] == [bar, steps, mine]
    assert callbacks.index(steps) < callbacks.index(TimeBudget.of(run.trainer)) < callbacks.index(mine)
    assert len(steps.lrs) == 3
    assert run.module.configure_callbacks() == (bar, mine, steps)
    with pytest.raises(ConfigError, match="callbacks: 'Timer' cannot be used"):
        fit(model=Configured(Timer("00:00:01:00")), **options)


class Bigram(pl.LightningModule):
    """A module of the user's that trains on bytelm's data."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Embedding(256, 256)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.logits(batch[0]).flatten(0, 1), batch[1].flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Tokens(pl.LightningDataModule):
    """Data of the user's that a GPT trains on; an epoch has 4 batches, and a validation one."""

    def train_dataloader(self):
        return torch.utils.data.DataLoader([(torch.arange(32) + i, torch.arange(1, 33)) for i in range(8)], 2)

    def val_dataloader(self):
        return torch.utils.data.DataLoader([(torch.arange(32), torch.arange(1, 33))])


def test_a_module_of_the_users_trains_on_bytelms_data_and_a_gpt_on_the_users(folder):
    options = {"accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False}
    run = fit(model=Bigram(), data=corpus(), limit="2 steps", **options)
    unknown = dict.fromkeys(("tokens_seen", "tokens_per_sec", "val_bpb"))
    assert run.record | unknown | {"status": "completed", "total_steps": 2} == run.record

    logger = MemoryLogger()
    run = fit(model=gpt(), data=Tokens(), limit="10 steps", check_val_every_n_epoch=2, logger=logger, **options)
    assert [step for step, _ in logger.values["train/loss"]] == [*range(8), 9]
    assert [step for step, _ in logger.values["val/loss"]] == [7, 9]  # the end of the run, too
    assert run.record["val_loss"] == pytest.approx(logger.values["val/loss"][-1][1], abs=1e-6)
    assert run.val_bpb == pytest.approx(run.record["val_loss"] / math.log(2), abs=1e-5)

    words = GPT(d_model=16, n_heads=2, n_layers=1, d_ff=32, max_seq_len=32, vocab_size=300)
    assert fit(model=words, data=Tokens(), limit="1 steps", **options).val_bpb is None  # bytes of a token are not known
    data = Tokens()
    data.token_bytes = torch.full((300,), 2)
    run = fit(model=words, data=data, limit="1 steps", **options)
    assert run.val_bpb == pytest.approx(run.record["val_loss"] / math.log(2) / 2, abs=1e-5)


class Pairs(pl.LightningDataModule):
    """Rows of token ids, in batches that `make` makes of inputs and targets; two validation loaders."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def train_dataloader(self):
        rows = [(torch.arange(16) + i, torch.arange(1, 17) + i) for i in range(4)]
        return torch.utils.data.DataLoader(rows, 2, collate_fn=lambda some: self.make(*default_collate(some)))

    def val_dataloader(self):
        return [self.train_dataloader(), self.train_dataloader()]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x, y: {"input_ids": x, "labels": y}, "data: 'dict' cannot be used; a batch is a mapping of input_ids"),
        (lambda x, y: x, r"data: 'Tensor' cannot be used; a batch is int64 \(2, 16\); accepted: a pair"),
        (lambda x, y: (x, y[:, :8]), r"data: 'tuple' .*a batch is \(int64 \(2, 16\), int64 \(2, 8\)\)"),
        (
            lambda x, y: (x, y + 250),
            "data: 267 cannot be used; a token id is beyond the network's vocab_size",
        ),
        (lambda x, y: (x.repeat(1, 3), y.repeat(1, 3)), "data: 48 cannot be used; rows are longer than max_seq_len"),
    ],
)
def test_batches_that_a_gpt_cannot_train_on_are_rejected(folder, make, said):
    with pytest.raises(ConfigError, match=said):
        fit(model=gpt(), data=Pairs(make), limit="2 steps", accelerator="cpu")


def test_several_validation_loaders_have_one_score(folder):
    run = fit(model=gpt(), data=Pairs(lambda *pair: pair), limit="2 steps", accelerator="cpu")
    assert run.record["val_loss"] == pytest.approx(run.val_bpb * math.log(2), abs=1e-5)


class Graded(Line):
    """A module of the user's that logs val/loss; the third validation has the lowest."""

    def __init__(self):
        super().__init__()
        self.losses = iter((5.0, 4.0, 3.0, 6.0))

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", next(self.losses))


def test_the_best_checkpoint_of_any_module_is_kept_by_its_score(folder):
    options = {"accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False, "limit": "8 steps"}
    often = {"val_check_interval": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    best = fit(model=Graded(), data=Text(), **often, **options).folder / "checkpoints"
    assert torch.load(best / "best.ckpt", weights_only=True)["global_step"] == 6
    data = Tokens()
    data.token_bytes = [2] * 256
    run = fit(model=gpt(), data=data, val_check_interval=4, **options)
    (callback,) = (each for each in run.trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint))
    assert callback.monitor == "val/bpb"
    (scores,) = run.trainer.validate(run.module, run.trainer.datamodule, ckpt_path="best", verbose=False)
    assert scores["val/bpb"] == pytest.approx(min(float(callback.best_model_score), run.val_bpb), abs=1e-6)
    data.token_bytes = [2] * 9
    with pytest.raises(ConfigError, match=r"data.token_bytes: \(9,\) cannot be used; .* \(256,\)"):
        fit(model=gpt(), data=data, **options)


class DivergesOnce(Line):
    def __init__(self, scheduled=False):
        super().__init__()
        self.scheduled, self.rates = scheduled, []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return super().training_step(batch, batch_idx) * (math.nan if len(self.rates) == 3 else 1)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return ([optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]) if self.scheduled else optimizer


def test_any_module_is_rewound_with_a_lower_learning_rate(folder):
    options = {"data": Numbers(), "limit": "5 steps", "accelerator": "cpu", "enable_model_summary": False}
    run = fit(model=DivergesOnce(), callbacks=[Divergence("rewind")], **options)
    assert run.module.rates == [0.1] * 3 + [0.05] * 2
    with pytest.raises(ConfigError, match=r"'rewind' cannot be used; .* StepLR sets them; accepted: stop"):
        fit(model=DivergesOnce(scheduled=True), callbacks=[Divergence("rewind")], **options)


class Unnamed(Bigram):
    """Its parameters are made in configure_model, and its score has a name of its own."""

    def __init__(self):
        super().__init__()
        del self.logits

    def configure_model(self):
        if not hasattr(self, "logits"):
            self.logits = torch.nn.Embedding(256, 256)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))


def test_a_run_without_a_score_says_so_and_has_its_parameters(folder, capsys):
    stop = EarlyStopping("val_loss", patience=0, min_delta=9.0)
    options = {"callbacks": [stop], "val_check_interval": 2, "accelerator": "cpu", "log_every_n_steps": 1}
    run = fit(model=Unnamed(), data=corpus(), limit="20 steps", **options)
    err = capsys.readouterr().err
    assert "note: the run has no score: the module logs val_loss; scores are val/loss and val/bpb" in err
    assert "model   65,536 parameters" in err
    assert run.record["num_params_M"] == 0.0655
    assert re.search(r"20% \| step 4 .*done", err)
    with pytest.raises(ValueError, match="not configured to save the best model"):
        run.trainer.validate(run.module, run.trainer.datamodule, ckpt_path="best")


def test_the_trainer_of_a_run_scores_its_checkpoints(folder):
    options = {"accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False}
    run = fit(model=gpt(), data=corpus(), limit="8 steps", val_check_interval="50%", **options)
    with torch.no_grad():
        run.module.gpt.embedding.weight.zero_()
    for name in ("last", "best"):
        (scores,) = run.trainer.validate(run.module, run.trainer.datamodule, ckpt_path=name, verbose=False)
        assert scores["val/bpb"] == pytest.approx(run.val_bpb, abs=1e-6)


class Weighed(Line):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.layer(batch).square().mean())


def test_the_last_checkpoint_of_a_users_module_is_scored_and_not_its_present_weights(folder):
    options = {"limit": "2 steps", "accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False}
    run = fit(model=Weighed(), data=ThreeToValidate(), **options)
    with torch.no_grad():
        run.module.layer.weight.fill_(100.0)
    (scores,) = run.trainer.validate(run.module, run.trainer.datamodule, ckpt_path="last", verbose=False)
    assert scores["val/loss"] == pytest.approx(run.record["val_loss"], abs=1e-5)
    run = fit(model=Weighed(), data=ThreeToValidate(), enable_checkpointing=False, **options)
    with pytest.raises(CheckpointError, match=r"^ckpt_path: the run has no last.ckpt; accepted: null for the present"):
        run.trainer.validate(run.module, run.trainer.datamodule, ckpt_path="last", verbose=False)


class Text(Numbers):
    """Data whose validation takes a fifth of the batches of training."""

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=2)


class Endless(Numbers):
    def val_dataloader(self):
        return torch.utils.data.DataLoader(Stream(), batch_size=2)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(torch.ones(4, 1))


class Scored(Line):
    def __init__(self):
        super().__init__()
        self.validated = []

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.validated.append(self.global_step)


def test_a_tenth_of_a_run_on_any_data_is_followed_by_a_validation_where_that_is_cheap(folder, capsys):
    module = Scored()
    options = {"accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False}
    options["num_sanity_val_steps"] = 0
    fit(model=module, data=Text(), limit="20 steps", **options)
    assert module.validated == [4, 8, 12, 16, 20]  # 2 batches, after at least 4 of training
    assert "validated only" not in capsys.readouterr().err
    module = Scored()
    fit(model=module, data=Endless(), limit="20 steps", **options)
    assert module.validated == [20]
    assert "validated only at the end of the run: the validation loader has no length" in capsys.readouterr().err


def test_a_test_of_one_batch_writes_nothing(folder):
    run = fit(model=gpt(), data=corpus(), limit="4 steps", accelerator="cpu", fast_dev_run=True)
    assert (run.folder, run.record, run.val_bpb) == (None, {}, None)
    assert not Path("runs").exists()
    with pytest.raises(ConfigError, match="fast_dev_run"):
        run.load()


# As the command rejects them, with the names of the arguments.
OF_OBJECTS = [
    ({"model": "GPT"}, "model: 'GPT' cannot be used; accepted: a bytelm.gpt.GPT"),
    ({"data": [1]}, "data: [1] cannot be used; accepted: a LightningDataModule"),
    ({"limit": 3}, "limit: 3"),
    ({"seed": "a"}, "seed: 'a'"),
    ({"lr_schedule": "Cosine"}, "lr_schedule: 'Cosine'"),
    ({"callbacks": ["EarlyStopping"]}, "callbacks: 'EarlyStopping'"),
    ({"gradient_clip_val": -1}, "gradient_clip_val: -1 cannot be used; accepted: a number above 0"),
    ({"gradient_clip_val": "one"}, "trainer: "),
    ({"max_time": "00:00:01:00"}, "max_time: '00:00:01:00' cannot be used; limit decides when a run ends"),
    ({"max_steps": 3}, "max_steps: 3 cannot be used; limit decides"),
    ({"accumulate_grad_batches": 0}, "accumulate_grad_batches: 0"),
    ({"limit_train_batches": 0}, "limit_train_batches: 0"),
    ({"limit_train_batches": 1e-9}, "limit_train_batches: 1e-09 cannot be used; an epoch has"),
    ({"val_check_interval": 0}, "val_check_interval: 0"),
    ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs: 1"),
    ({"barebones": True}, "barebones: True"),
    ({"ckpt_path": "last"}, "ckpt_path: 'last' cannot be used; accepted with configs: fit("),
    ({"check_val_every_n_epoch": -1}, "check_val_every_n_epoch: -1"),
    ({"logger": "CSVLogger"}, "logger: 'CSVLogger' cannot be used; accepted: objects of subclasses"),
    (
        {"limit": "5%"},
        "limit: '5%' cannot be used; accepted: a time (180s, 3m, 1h30m, 250ms), steps (500 steps), tokens",
    ),
    ({"num_nodes": 2}, "num_nodes: 2 cannot be used; MASTER_ADDR"),
    ({"precision": "fp9"}, "precision: 'fp9'"),
    ({"accelerator": None}, "accelerator: None"),
    ({"strategy": "deep"}, "strategy: 'deep' cannot be used; accepted: auto, ddp"),
    ({"enable_checkpointing": False, "callbacks": [ModelCheckpoint()]}, "enable_checkpointing: False"),
    ({"logger": False, "callbacks": [LearningRateMonitor()]}, "callbacks: 'LearningRateMonitor'"),
    ({"callbacks": [StochasticWeightAveraging(0.1)]}, "callbacks: 'StochasticWeightAveraging'"),
    ({"callbacks": [LearningRateFinder()]}, "callbacks: 'LearningRateFinder'"),
    ({"callbacks": [Timer("00:00:01:00")]}, "callbacks: 'Timer' cannot be used; limit decides"),
    (
        {"callbacks": [TimeBudget("3 steps")]},
        "callbacks: 'TimeBudget' cannot be used; every run has one; accepted: the a",
    ),
    (
        {"callbacks": [Schedules({})]},
        "callbacks: 'Schedules' cannot be used; every run has one; accepted: the argument",
    ),
    ({"callbacks": [Samples(), Samples()]}, "callbacks: 'Samples' cannot be used; there are several"),
    ({"callbacks": [ModelCheckpoint(filename="last")]}, "callbacks.filename: 'last' cannot be used; every run writes"),
    ({"callbacks": [EarlyStopping("val/bpb")]}, "callbacks: 'EarlyStopping' cannot be used; val/bpb may be known"),
    ({"callbacks": [ModelCheckpoint(monitor="vall")]}, "callbacks.monitor: 'vall' cannot be used; it is not logged"),
]


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "said"),
    [
        ([], {}, ConfigError, "model: None"),
        ([], {"model": gpt()}, ConfigError, "data: None"),
        (
            ["tiny.yaml"],
            {"limit": "3 steps"},
            ConfigError,
            "limit: '3 steps' cannot be used; accepted without configs; with configs: fit(…, {'time_budget.limit': …})",
        ),
        (["tiny.yaml"], {"seed": 1}, ConfigError, "seed: 1"),
        (["tiny.yaml"], {"callbacks": [Steps()]}, ConfigError, "callbacks: "),
        (
            ["tiny.yaml"],
            {"devices": 2},
            ConfigError,
            "devices: 2 cannot be used; accepted without configs; with configs: fit(…, {'trainer.devices': …})",
        ),
        (["missing.yaml"], {}, ConfigError, "config: "),
        ([{"modl": 3}], {}, UsageError, "modl: unknown key; did you mean model?"),
        (["tiny.yaml", {"model.gpt.n_heads": 3}], {}, ConfigError, "model.gpt.n_heads: 3"),
        (["tiny.yaml", {"trainer.callbacks": [Steps()]}], {}, ConfigError, "config: <test_train.Steps"),
        ([], {"model": gpt(), "data": corpus(), "limit": "3 apples"}, ConfigError, "limit: '3 apples'"),
        ([], {"model": gpt(), "data": corpus(), "devises": 2}, ConfigError, "devises: 2"),
        ([], {"model": gpt(), "data": corpus(), "experiment": "../up"}, ConfigError, "experiment: '../up'"),
        ([], {"model": gpt(), "data": Bytes("corpus.txt", seq_len=64)}, ConfigError, "data.seq_len: 64"),
        ([], {"model": gpt(), "data": Bytes("none.txt", seq_len=32)}, DataError, "data.path: 'none.txt'"),
        *(([], {"model": gpt(), "data": corpus(), **options}, ConfigError, said) for options, said in OF_OBJECTS),
    ],
)
def test_invalid_settings_are_named(folder, arguments, options, kind, said):
    with pytest.raises(kind) as error:
        fit(*arguments, **options)
    assert str(error.value).startswith(said)
    assert not Path("runs").exists()
    if kind is not DataError:
        assert len(error.traceback) < 6, "frames between fit and the check"
        assert error.value.__cause__ is None
    assert error.value._render_traceback_() == [f"{type(error.value).__name__}: {error.value}"]


def test_options_of_the_command_are_those_of_objects(folder):
    options = {"limit": "2 steps", "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    steps = Steps()
    run = fit(model=gpt(), data=corpus(), callbacks=steps, logger=True, **options)  # one callback, not in a list
    assert [*run.folder.glob("events.out*")]
    assert isinstance(run.trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    again = fit(
        model=Line(), data=Numbers(), reload_dataloaders_every_n_epochs=1, callbacks=None, **options
    )  # its loaders may change
    assert again.record["status"] == "completed"


def test_the_bar_is_redrawn_in_a_notebook_and_not_in_a_file():
    stream = type("OutStream", (), {"__module__": "ipykernel.iostream", "isatty": lambda self: False})()
    assert can_redraw(stream)
    with open("/dev/null", "w") as file:
        assert not can_redraw(file)
