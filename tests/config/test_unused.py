"""Options that have no effect because of another option: a note names both."""

import re

import pytest
from torch.optim import AdamW

from bytelm.callbacks import Cosine, Divergence, Ramp, Samples, WarmupStableDecay
from bytelm.cli import CHECKPOINT_DEFAULTS
from bytelm.config.unused import TRAINING, of_object, of_other_commands, of_training, without_effect
from bytelm.data.corpora import Bytes, Shakespeare
from bytelm.data.shards import TokenShards
from bytelm.errors import ConfigError
from bytelm.optim import Muon, MuonAdamW
from bytelm.parts.attention import WindowedSDPA
from bytelm.run_trainer import DEFAULTS
from bytelm.runs.logger import TensorBoardLogger


def notes(**config):
    config = {"trainer": {}, **config}
    return [*without_effect(config, {**DEFAULTS, **CHECKPOINT_DEFAULTS})]


def of(cls, **options):
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": options}


@pytest.mark.parametrize(
    ("config", "unused", "because"),
    [
        ({"lr_schedule": of(Cosine, warmup="0 steps", warmup_from=0.1)}, "lr_schedule.warmup_from", "warmup 0 steps"),
        ({"lr_schedule": of(WarmupStableDecay, decay="0%", decay_shape="sqrt")}, "lr_schedule.decay_shape", "decay 0%"),
        ({"schedules": {"momentum": of(Ramp, over="0s", shape="cosine")}}, "schedules.momentum.shape", "over 0s"),
        ({"data": of(Bytes, order="sequential", seed=3)}, "data.seed", "data.order sequential"),
        ({"data": of(TokenShards, order="sequential", seed=3)}, "data.seed", "data.order sequential"),
        ({"model": {"optimizer": of(Muon, beta2=0.9)}}, "model.optimizer.beta2", "variance_reduction false"),
        ({"model": {"optimizer": of(MuonAdamW, beta2=0.9)}}, "model.optimizer.beta2", "variance_reduction false"),
        (
            {"model": {"gpt": {"attention": of(WindowedSDPA, window=8, pattern="L")}}},
            "model.gpt.attention.window",
            "pattern L",
        ),
        ({"divergence": {"lr_factor": 0.1}}, "divergence.lr_factor", "divergence.on_divergence stop"),
        ({"samples": {"max_new_tokens": 0, "temperature": 0.1}}, "samples.temperature", "samples.max_new_tokens 0"),
        ({"samples": {"temperature": 0.0, "seed": 1}}, "samples.seed", "samples.temperature 0.0"),
        (
            {"trainer": {"gradient_clip_algorithm": "value"}},
            "trainer.gradient_clip_algorithm",
            "gradient_clip_val null",
        ),
        (
            {"trainer": {"enable_checkpointing": False}, "checkpoint": {"monitor": "val/bpb", "save_top_k": 3}},
            "checkpoint.save_top_k",
            "trainer.enable_checkpointing false",
        ),
        ({"trainer": {"limit_val_batches": 0}, "samples": {"seed": 1}}, "samples.seed", "limit_val_batches 0"),
        ({"trainer": {"limit_val_batches": 0.0, "val_check_interval": 5}}, "trainer.val_check_interval", "batches 0.0"),
        ({"trainer": {"overfit_batches": 2, "limit_train_batches": 3}}, "trainer.limit_train_batches", "batches 2"),
        ({"trainer": {"fast_dev_run": True, "limit_val_batches": 3}}, "trainer.limit_val_batches", "dev_run true"),
        ({"trainer": {"fast_dev_run": 3, "val_check_interval": "10%"}}, "trainer.val_check_interval", "dev_run 3"),
        ({"trainer": {"logger": [of(TensorBoardLogger, name="mine")]}}, "trainer.logger.name", "logger.save_dir null"),
    ],
)
def test_a_note_names_the_option_and_the_other(config, unused, because):
    (line,) = notes(**config)
    assert line.startswith(f"{unused} has no effect with ")
    assert line.endswith(because)


def test_objects_have_the_notes_of_their_options():
    assert [*of_object(Cosine(warmup_from=0.1), "lr_schedule")] == [
        "lr_schedule.warmup_from has no effect with lr_schedule.warmup 0 steps"
    ]
    assert [*of_object(Bytes("x", seed=3), "data")] == ["data.seed has no effect with data.order sequential"]
    for made in (Cosine(warmup="5%", warmup_from=0.1), Cosine(), Divergence("rewind", 2), Samples(), Bytes("x")):
        assert not [*of_object(made, "made")]


def test_options_with_an_effect_or_their_defaults_have_no_note():
    assert not notes(
        lr_schedule=of(Cosine, warmup="5%", warmup_from=0.1, warmup_shape="cosine"),
        data=of(Bytes, order="shuffled", seed=3),
        divergence={"on_divergence": "rewind", "lr_factor": 0.1},
        samples={"max_new_tokens": 0, "temperature": 0.8, "prompt_tokens": 32, "seed": 42},
        checkpoint={"filename": "best", "monitor": "val/bpb", "save_last": False, "save_top_k": 2},
        model={"optimizer": of(AdamW, lr=0.1)},
        trainer={"gradient_clip_algorithm": "norm", "gradient_clip_val": 1.0, "fast_dev_run": False},
    )
    assert not notes(
        trainer={"enable_checkpointing": False, "limit_val_batches": 0, "overfit_batches": 0.0, "fast_dev_run": False}
    )


@pytest.mark.parametrize("cls", [Cosine, WarmupStableDecay, Ramp, Bytes, TokenShards, Muon, Divergence, Samples])
def test_the_options_that_a_class_declares_are_its_own(cls):
    from bytelm.config.unused import _declared, _defaults

    assert _declared(cls)
    for option, (other, _) in _declared(cls).items():
        assert {option, other} <= _defaults(cls).keys()


def test_a_run_prints_its_notes_and_validate_those_of_training(run, capsys):
    optimizer = ("--model.optimizer", "MuonAdamW", "--model.optimizer.table_lr", "0.3")
    run("--divergence.max_rewinds", "2", "--checkpoint.every_n_train_steps", "30", *optimizer)
    found = re.findall(r"bytelm: note: (.*)", capsys.readouterr().err)
    assert found == [
        "divergence.max_rewinds has no effect with divergence.on_divergence stop",
        "model.optimizer.table_lr has no effect, because the network has no group `table`",
        "no best.ckpt: val/bpb was not known when the key checkpoint saves (docs/runs.md)",
    ]
    given = ("--ckpt_path", "runs/tiny/version_0", "--experiment", "x", "--data.seed", "5")
    given += ("--time_budget.limit", "9s", "--trainer.log_every_n_steps", "5")
    run(*given, "--model.optimizer.lr", "1", subcommand="validate")
    err = capsys.readouterr().err
    training = "data.seed, model.optimizer.lr, time_budget.limit, trainer.log_every_n_steps"
    assert f"note: {training}: no effect in validate, which does not train" in err
    assert "note: experiment: no effect in validate with ckpt_path runs/tiny/version_0, but with last or best" in err
    with pytest.raises(ConfigError, match=r"limit_val_batches: 0 cannot be used; validate would read nothing; accept"):
        run("--ckpt_path", "last", "--trainer.limit_val_batches", "0", subcommand="validate")


def test_options_of_training_are_sections_and_options():
    given = ["data.path", "model.gpt", "model.optimizer", "lr_schedule.warmup", "trainer.devices", "lr_scheduler"]
    assert of_training(given) == ["lr_schedule.warmup", "model.optimizer"]
    assert of_training(["data.init_args.order", "data.seed", "data.path"], Bytes) == [
        "data.init_args.order",
        "data.seed",
    ]
    assert "trainer.gradient_clip_val" in TRAINING


def test_options_of_another_command_are_named():
    limits = ["trainer.limit_test_batches", "trainer.limit_val_batches"]
    assert of_other_commands(["trainer.devices", *reversed(limits)], "fit") == limits[:1]
    assert of_other_commands(limits, "predict") == limits


def test_options_of_a_download_that_is_not_made_have_one_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BYTELM_DATA", str(tmp_path))
    (tmp_path / "shakespeare.txt").write_text("To be\n")
    data = Shakespeare(sha256="0" * 64)
    data.prepare_data()
    data.prepare_data()
    assert capsys.readouterr().err.count("data.sha256: no effect, because") == 1
    Shakespeare().prepare_data()
    assert capsys.readouterr().err == ""
