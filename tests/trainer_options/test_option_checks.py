"""Options, callbacks and strategies of Lightning that would have no effect, or a harmful one, are rejected by name."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bytelm.callbacks import BestCheckpoint
from bytelm.errors import ConfigError
from bytelm.run_trainer import changed_options
from bytelm.strategies import ACCEPTED, FSDP, check_devices, check_launch, make_strategy
from bytelm.trainer_options.checks import check_callbacks, check_monitors, check_options, run_error_of, trainer_error

LOGGED = ["train/loss", "grad/norm", "val/loss", "val/bpb"]


def message(function, *args, **kwargs):
    with pytest.raises(ConfigError) as raised:
        function(*args, **kwargs)
    return str(raised.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("gradient_clip_val", -1),
        ("gradient_clip_val", float("nan")),
        ("gradient_clip_val", float("inf")),
        ("log_every_n_steps", -1),
        ("num_sanity_val_steps", -2),
        ("max_time", "00:00:10:00"),
        ("model_registry", "models"),
    ],
)
def test_an_option_that_would_do_nothing_or_harm_is_rejected(option, value):
    said = message(check_options, {option: value})
    assert said.startswith(f"trainer.{option}: {value!r} cannot be used; ")


def test_callbacks_of_one_class_whose_states_cannot_be_told_apart_are_named(rejected):
    line = rejected("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks+=ModelCheckpoint")
    assert line.startswith("bytelm: error: trainer.callbacks: 'ModelCheckpoint' cannot be used; there are several")


def test_a_precision_beside_a_plugin_of_another_precision_is_rejected():
    def change(precision):
        return changed_options({"precision": precision, "plugins": [DoublePrecision()]})

    assert "trainer.precision: 'bf16-mixed' cannot be used; trainer.plugins has DoublePrecision" in message(
        change, "bf16-mixed"
    )
    for same in (None, "64", 64, "64-true"):
        assert change(same)["precision"] is None


def test_parameters_without_gradients_are_named_by_the_strategy_that_rejects_them():
    error = RuntimeError("It looks like your LightningModule has parameters that were not used in producing the loss")
    said = str(run_error_of(error, {"trainer": {"strategy": "ddp"}}, {}))
    assert said.startswith(
        "trainer.strategy: 'ddp' cannot be used; some parameters get no gradient; accepted: ddp_find"
    )


def test_a_notebook_has_one_rank():
    """Lightning recommends ddp_notebook there, and takes it for several devices; its ranks are forks."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    said = message(check_launch, DDPStrategy(start_method="fork", parallel_devices=[]))
    assert "a notebook, or interactive Python, has one rank" in said
    check_launch(DDPStrategy())
    error = MisconfigurationException("`Trainer(strategy=…)` is not compatible with an interactive environment. Run")
    said = str(trainer_error(error, {"strategy": "ddp"}))
    assert said.startswith("trainer.strategy: 'ddp' cannot be used; a notebook, or interactive Python, has one rank")


def test_a_run_has_one_bar_and_its_own_checkpoints():
    said = message(check_callbacks, [TQDMProgressBar(), TQDMProgressBar()], {}, ())
    assert said.startswith("trainer.callbacks: ['TQDMProgressBar', 'TQDMProgressBar'] cannot be used; accepted: one")
    said = message(check_callbacks, [ModelCheckpoint(save_last=True)], {}, ())
    assert said.startswith("trainer.callbacks.save_last: True cannot be used; every run writes last.ckpt itself")
    check_callbacks([ModelCheckpoint(save_last=True, dirpath="elsewhere")], {}, ())
    said = message(BestCheckpoint, monitor="val/bpb", filename="last")
    assert said.startswith("checkpoint.filename: 'last' cannot be used; every run writes last.ckpt itself; accepted:")


@pytest.mark.parametrize("given", [{"gradient_clip_val": 0}, {"log_every_n_steps": 0}, {"num_sanity_val_steps": -1}])
def test_zero_and_lightnings_special_values_are_accepted(given):
    check_options(given)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Checkpoint", "does nothing by itself"),
        ("ProgressBar", "does nothing by itself"),
        ("Timer", "time_budget.limit"),
        ("BatchSizeFinder", "accepted: data.batch_size"),
        ("LearningRateFinder", "accepted: model.optimizer.lr"),
        ("BackboneFinetuning", "schedules.lr.<group>"),
    ],
)
def test_a_callback_that_would_do_nothing_or_cannot_work_is_rejected(name, said):
    options = {"Timer": {"duration": "00:00:10:00"}}.get(name, {})
    text = message(check_callbacks, [getattr(lightning_callbacks, name)(**options)], {}, ())
    assert text.startswith(f"trainer.callbacks: {name!r} cannot be used; ")
    assert said in text


@pytest.mark.parametrize("name", ["LearningRateMonitor", "DeviceStatsMonitor"])
def test_a_callback_that_needs_a_logger_is_rejected_without_one(name):
    callback = getattr(lightning_callbacks, name)()
    check_callbacks([callback], {}, ())
    assert "it needs a logger" in message(check_callbacks, [callback], {}, (), logs=False)


def test_values_that_no_run_logs_cannot_be_monitored():
    said = message(check_monitors, [EarlyStopping("train_loss")], LOGGED)
    assert said.startswith(
        "trainer.callbacks.monitor: 'train_loss' cannot be used; it is not logged; did you mean train/loss?"
    )
    assert said.endswith("accepted: train/loss, grad/norm, val/loss, val/bpb")
    assert "checkpoint.monitor: 'loss'" in message(check_monitors, [BestCheckpoint(monitor="loss")], LOGGED)
    check_monitors([EarlyStopping("val/bpb"), ModelCheckpoint(monitor="step"), ModelCheckpoint()], LOGGED)
    check_monitors([EarlyStopping("elsewhere", strict=False)], LOGGED)

    class Mine(Callback):
        pass

    check_monitors([EarlyStopping("mine"), Mine()], LOGGED)  # it may log the metric


def test_a_monitor_that_is_not_logged_in_the_end_is_one_line(folder, rejected):
    (folder / "my_callback.py").write_text(
        "from lightning.pytorch import Callback\n\n\nclass Mine(Callback):\n    pass\n"
    )
    line = rejected(
        *("--trainer.callbacks+=my_callback.Mine", "--trainer.callbacks+=EarlyStopping"),
        *("--trainer.callbacks.monitor=mine", "--trainer.enable_progress_bar=false"),
    )
    assert line.startswith("bytelm: error: trainer.callbacks.monitor: 'mine' cannot be used; it is not logged; ")
    assert "train/loss" in line


def test_rejections_by_lightning_at_the_start_are_one_line(rejected):
    assert "trainer.limit_val_batches: 0.0001 cannot be used" in rejected("--trainer.limit_val_batches=0.0001")


def test_all_names_of_strategies_are_made_or_rejected():
    names = StrategyRegistry.available_strategies()
    assert "ddp_fork" in names
    for name in names:
        if name in ACCEPTED:
            make_strategy(name)
        else:
            said = message(make_strategy, name)
            assert said.startswith(f"trainer.strategy: {name!r} cannot be used; ")
            assert "accepted: " in said


def test_strategies_that_fork_or_do_not_average_gradients_are_rejected():
    assert "start_method: 'fork'" in message(make_strategy, DDPStrategy(start_method="fork"))
    assert "accepted: fsdp" in message(make_strategy, ModelParallelStrategy())
    assert isinstance(make_strategy("fsdp"), FSDP)
    assert isinstance(make_strategy("bytelm.strategies.FSDP"), FSDP)
    assert isinstance(make_strategy("lightning.pytorch.strategies.DDPStrategy"), DDPStrategy)
    assert "did you mean ddp?" in message(make_strategy, "dpd")
    assert "it is not a strategy" in message(make_strategy, "bytelm.gpt.GPT")
    for devices in (2, "2", [0, 1]):
        assert "trainer.devices is" in message(check_devices, "single_device", devices)
    check_devices("single_device", 1)


def test_a_users_checkpoint_io_is_used_wherever_it_is_given(folder, run):
    (folder / "my_io.py").write_text(
        "from lightning.fabric.plugins import TorchCheckpointIO\n\n\nclass Mine(TorchCheckpointIO):\n    pass\n"
    )
    for option in (
        "--trainer.plugins+=my_io.Mine",
        "--trainer.strategy={class_path: SingleDeviceStrategy, init_args: {device: cpu, checkpoint_io: my_io.Mine}}",
    ):
        cli = run(option, "--time_budget.limit=1 steps")
        assert type(cli.trainer.strategy.checkpoint_io).__name__ == "Mine"


def test_a_schedule_of_the_models_own_is_kept_or_the_run_is_rejected(run, folder):
    from torch.optim.lr_scheduler import StepLR

    from bytelm.cli import build
    from bytelm.language_model import LanguageModel

    class Model(LanguageModel):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": StepLR(optimizer, 1, 0.1), "interval": "step"}]

    def fit(*options):
        cli = build(["--config", "tiny.yaml", *options], run=False)
        cli.trainer.fit(Model(cli.model.gpt, optimizer=cli.model.optimizer), datamodule=cli.datamodule)
        cli.folder.release()
        return cli.trainer.optimizers[0].param_groups[0]["lr"]

    assert "the model's own StepLR sets learning rates, too" in message(fit)
    assert "schedules.lr.hidden: 'Cosine'" in message(fit, "--lr_schedule=null", "--schedules={lr.hidden: Cosine}")
    assert fit("--lr_schedule=null", "--time_budget.limit=3 steps") == pytest.approx(3e-6)


def test_a_value_that_is_logged_twice_is_named():
    results = _ResultCollection(training=False)
    meta = {"on_step": False, "on_epoch": True, "batch_size": 1}
    results.log("on_validation_epoch_end", "val/bpb", torch.tensor(1.0), **meta)
    with pytest.raises(MisconfigurationException) as raised:
        results.log("on_validation_epoch_end", "val/bpb", torch.tensor(1.0), **meta, prog_bar=True)
    said = "self.log: 'val/bpb' cannot be used; it is logged in on_validation_epoch_end already; accepted: another name"
    assert str(run_error_of(raised.value, {"trainer": {}}, {})) == said
