"""TimeBudget and schedules with a Trainer and a LightningModule that are independent of bytelm."""

import json
import random
import sys
from functools import partial

import lightning.pytorch as pl
import numpy as np
import programs
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from memory_logger import MemoryLogger
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from bytelm.callbacks import BudgetBar, Cosine, LastCheckpoint, Linear, Ramp, Schedules, Throughput, TimeBudget
from bytelm.callbacks.snapshot import Attributes, cloned
from bytelm.errors import ConfigError
from bytelm.units import Duration

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(pl.LightningModule):
    """A classifier; each of its steps takes `seconds` on the test's clock."""

    def __init__(self, clock=None, seconds=1.0):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.clock, self.seconds = clock, seconds

    def training_step(self, batch, batch_idx):
        if self.clock is not None:
            self.clock.now += self.seconds
        x, y = batch
        return F.cross_entropy(self.layer(x), y)

    def validation_step(self, batch, batch_idx):
        if self.clock is not None:
            self.clock.now += 100
        self.log("loss", F.cross_entropy(self.layer(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rows(n=8, batch_size=2, **options):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(n, 3, generator=generator), torch.randint(2, (n,), generator=generator))
    return DataLoader(data, batch_size=batch_size, **options)


def trainer(*callbacks, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"accelerator": "cpu", "devices": 1, **quiet, "enable_model_summary": False, **options}
    return pl.Trainer(callbacks=list(callbacks), **options)


def fit(module, budget, *callbacks, loader=None, validation=None, **options):
    made = trainer(budget, *callbacks, **options)
    made.fit(module, rows() if loader is None else loader, validation)
    return made


# End of a run


def test_a_plain_trainer_trains_epoch_after_epoch_to_the_budgets_end(clock):
    budget = TimeBudget("10s")
    made = fit(Net(clock), budget)
    assert (budget.steps, made.global_step, made.current_epoch) == (10, 10, 3)
    assert budget.training_seconds == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("options", "steps", "note"),
    [
        ({}, 10, ""),
        ({"max_epochs": 2}, 8, "trainer.max_epochs=2 has ended training with 80% of the time budget used"),
        ({"max_steps": 7}, 7, "trainer.max_steps=7 has ended training with 70%"),
        ({"max_epochs": 5, "max_steps": 50}, 10, ""),
        ({"max_epochs": -1}, 10, ""),
        ({"max_time": "01:00:00:00"}, 10, ""),
        ({"max_time": {"seconds": 0}}, 0, ""),
        ({"fast_dev_run": True}, 1, ""),
        ({"limit_train_batches": 3}, 10, ""),
        ({"overfit_batches": 1}, 10, ""),
    ],
)
def test_the_first_limit_to_be_reached_ends_a_run_the_trainers_or_the_budgets(clock, capsys, options, steps, note):
    made = fit(Net(clock), TimeBudget("10s"), **options)
    assert made.global_step == steps
    err = capsys.readouterr().err
    assert note in err
    assert ("has ended training" in err) == bool(note)


@pytest.mark.parametrize("option", ["min_steps", "min_epochs"])
def test_a_minimum_length_is_rejected(option):
    with pytest.raises(ConfigError, match=rf"trainer\.{option}: 3 .*time_budget\.limit"):
        fit(Net(), TimeBudget("3 steps"), **{option: 3})


def test_a_callback_may_end_a_run_before_the_budget_and_the_clock_stops_with_it(clock):
    budget = TimeBudget("1h")
    made = fit(Net(clock), budget, EarlyStopping("loss", patience=0, min_delta=9), validation=rows())
    assert made.global_step == budget.steps == 8
    clock.now += 50
    assert budget.training_seconds == pytest.approx(8.0)
    made.validate(made.lightning_module, rows(), verbose=False)
    assert budget.training_seconds == pytest.approx(8.0)


def test_validation_in_every_epoch_and_the_sanity_check_do_not_count(clock):
    budget = TimeBudget("10s")
    made = fit(Net(clock), budget, validation=rows())
    assert (budget.steps, made.current_epoch) == (10, 3)
    assert clock.now > 2000


def test_an_exception_stops_the_clock(clock):
    class Failing(Net):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            raise RuntimeError("mine")

    budget = TimeBudget("10s")
    with pytest.raises(RuntimeError, match="mine"):
        fit(Failing(clock), budget)
    clock.now += 50
    assert budget.training_seconds == pytest.approx(1.0)


@pytest.mark.parametrize("option", ["scope", "overshoot", "warm_up"])
def test_an_unknown_choice_is_rejected(option):
    with pytest.raises(ConfigError, match=rf"time_budget\.{option}: 'trainig' .*accepted: "):
        TimeBudget("10s", **{option: "trainig"})


def test_with_scope_run_a_process_older_than_the_limit_is_reported(clock):
    clock.now += 3720
    with pytest.raises(ConfigError, match=r"start of this process, 3720s ago; accepted: more, or scope: training"):
        fit(Net(clock), TimeBudget("1h", scope="run"))


def test_a_limit_that_the_warm_up_shows_to_be_too_short_says_what_was_used_before(clock):
    clock.now += 9
    budget = TimeBudget("10s", scope="run", reserve=Duration.parse("0s"), warm_up=True)
    with pytest.raises(ConfigError, match=r"about 1s, after about 11s since the start of the program"):
        fit(Net(clock), budget)


@pytest.mark.parametrize("late", [Throughput, BudgetBar, lambda: Schedules({"lr": Cosine()})])
def test_callbacks_that_read_the_budget_come_after_it(late):
    made = trainer(late(), TimeBudget("3 steps"), enable_progress_bar=True)
    with pytest.raises(ConfigError, match="accepted: TimeBudget before"):
        made.fit(Net(), rows())


# Batches of all kinds, and tokens


class Sums(Net):
    """Accepts a batch of any kind: adds up the tensors in it."""

    def training_step(self, batch):
        self.batch = batch
        flat, _ = torch.utils._pytree.tree_flatten(batch)
        return self.layer(
            torch.stack([each.float().mean() for each in flat if torch.is_tensor(each)]).mean().repeat(3)
        ).sum()


def listed(batches):
    return DataLoader(batches, batch_size=None)  # Lightning would treat a list as several loaders


def generator():
    for number in range(1000):
        yield torch.full((2,), number)


BATCHES = {
    "tensor": lambda: DataLoader(torch.randn(8, 3), batch_size=2),
    "dict": lambda: DataLoader([{"image": torch.randn(3), "label": 1} for _ in range(8)], batch_size=2),
    "nested": lambda: listed([({"a": [torch.ones(2)]}, ("text", torch.ones(1)))] * 4),
    "None": lambda: listed([torch.ones(2), None, torch.ones(2)]),
    "dict of loaders": lambda: {"a": rows(), "b": DataLoader(torch.randn(8, 3))},
    "list of loaders": lambda: [rows(), rows()],
    "combined": lambda: CombinedLoader({"a": rows(), "b": rows(4)}, "min_size"),
    "generator": generator,
}


@pytest.mark.parametrize("warm_up", ["auto", True, False])
@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_every_kind(kind, warm_up):
    budget = TimeBudget("5 steps", warm_up=warm_up)
    fit(Sums(), budget, loader=BATCHES[kind]())
    assert (budget.steps, budget.tokens, budget.counts.knows("tokens")) == (5, 0, False)


class Texts(Sums):
    def count_tokens(self, batch):
        return int(batch["mask"].sum())


def texts():
    return listed([{"input_ids": torch.ones(2, 8), "mask": torch.ones(2, 3)}] * 3)


def test_tokens_are_counted_as_declared_or_as_input_ids():
    for module, tokens in ((Texts(), 6), (Sums(), 16)):
        budget = TimeBudget("100 tok")
        fit(module, budget, Throughput(), Schedules({"lr": Linear(until=Duration.parse("80 tok"))}), loader=texts())
        assert (budget.tokens, budget.steps) == (100 // tokens * tokens, 100 // tokens)


def test_a_datamodule_may_count_tokens():
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return rows()

        def count_tokens(self, batch):
            return len(batch[0]) * 10

    budget = TimeBudget("70 tok")
    trainer(budget).fit(Net(), datamodule=Data())
    assert (budget.tokens, budget.steps) == (60, 3)


def test_counts_that_are_tensors_become_numbers():
    class Counts(Net):
        def count_tokens(self, batch):
            return torch.tensor(10)

        def count_flops(self, batch):
            return torch.tensor(2e6)

    budget = TimeBudget("70 tok", warm_up=True)
    fit(Counts(), budget)
    assert (budget.tokens, budget.flops) == (70, 14_000_000)
    assert (type(budget.tokens), type(budget.flops), type(budget.progress.fraction)) == (int, int, float)


@pytest.mark.parametrize(
    ("limit", "others", "key"),
    [
        ("300 Mtok", [], r"time_budget\.limit: '300 Mtok'"),
        (["3 steps", "300 Mtok"], [], r"time_budget\.limit: '300 Mtok'"),
        ("3 steps", [Throughput()], "throughput: 'Net'"),
        ("3 steps", [Schedules({"lr": Cosine(warmup=Duration.parse("1 Mtok"))})], r"schedules\.lr: 'Cosine'"),
    ],
)
def test_options_that_need_tokens_are_rejected_before_training_if_tokens_are_unknown(limit, others, key):
    module = Net()
    with pytest.raises(ConfigError, match=rf"{key} .*method count_tokens\(batch\)"):
        fit(module, TimeBudget(limit), *others)
    assert module.trainer.global_step == 0
    assert all(parameter.grad is None for parameter in module.parameters())


class Counted(Net):
    def count_flops(self, batch):
        return len(batch[0]) * 1000


def test_flops_are_counted_as_declared_or_what_needs_them_is_rejected_before_training():
    budget = TimeBudget("10 kFLOP")
    fit(Counted(), budget)
    assert (budget.steps, budget.flops, budget.counts.knows("tokens")) == (5, 10_000, False)
    warmup = Schedules({"lr": Cosine(warmup=Duration.parse("1 kFLOP"))})
    for limit, others in (("1 PFLOP", []), ("3 steps", [warmup])):
        module = Net()
        with pytest.raises(ConfigError, match=r"FLOP.*method count_flops\(batch\)|FLOPs; .*count_flops"):
            fit(module, TimeBudget(limit), *others)
        assert module.trainer.global_step == 0


@pytest.mark.parametrize("every", ["1 Mtok", "1 PFLOP"])
def test_intervals_of_checkpoints_are_rejected_in_a_unit_that_is_not_counted(every):
    module = Net()
    with pytest.raises(ConfigError, match=rf"last_checkpoint\.every: '{every}' .*method count_"):
        fit(module, TimeBudget("3 steps"), LastCheckpoint(Duration.parse(every)), enable_checkpointing=True)
    assert module.trainer.global_step == 0


def test_gradients_that_an_epochs_end_cuts_short_are_a_step():
    budget = TimeBudget("6 steps")
    made = fit(Net(), budget, loader=rows(10), accumulate_grad_batches=2)  # steps of 2, 2 and 1 batches
    assert (budget.steps, made.global_step, made.current_epoch) == (6, 6, 2)


# The warm-up


class Restless(Net):
    """Changes everything that a training step can change."""

    def __init__(self, clock=None):
        super().__init__(clock)
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.teacher = nn.Linear(3, 3).requires_grad_(False)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.seen, self.sums, self.history = 0, {"x": [torch.zeros(())]}, []
        self.noise = torch.Generator().manual_seed(1)
        self.calls, self.traces = [], []

    def training_step(self, batch, batch_idx):
        x, y = batch.pop("x"), batch["y"]
        y += random.randrange(2)
        y %= 2
        self.seen += 1
        self.history.append(self.seen)
        self.sums["x"][0] += x.sum()
        self.sums[self.seen] = np.random.rand()
        x = x + torch.randn(x.shape, generator=self.noise)
        with torch.no_grad():
            for mine, own in zip(self.teacher.parameters(), self.body[0].parameters(), strict=True):
                mine.mul_(0.9).add_(own, alpha=0.1)
        logits = self.layer(self.body(x) + self.teacher(x))
        self.accuracy(logits, y)
        self.log("accuracy", self.accuracy, on_epoch=True)
        self.log_dict({"a": logits.mean()})
        self.logger.log_metrics({"own": float(self.seen)}, step=self.seen)
        return {"loss": F.cross_entropy(logits, y)}

    def on_before_backward(self, loss):
        self.calls.append(0)

    def on_after_backward(self):
        self.calls.append(1)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        state = [*self.state_dict().values(), *self.sums["x"], self.noise.get_state().sum(), torch.rand(1)]
        plain = [self.seen, *self.history, *list(self.sums.items())[1:], np.random.rand(), random.random(), *self.calls]
        self.traces.append(([each.clone() for each in state], plain, outputs["loss"]))


class Hears(Callback):
    def __init__(self):
        self.calls = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.calls.append(loss.item())

    def on_after_backward(self, trainer, pl_module):
        self.calls.append(1)


def restless_run(*callbacks, **options):
    """Trains on a generator of shuffled rows; returns all observable values of the run."""
    pl.seed_everything(3, verbose=False)
    hears, logger, module = Hears(), MemoryLogger(), Restless()
    loader = ({"x": x, "y": y} for _ in range(100) for x, y in rows(shuffle=True))
    made = trainer(*callbacks, hears, logger=logger, log_every_n_steps=1, **options)
    made.fit(module, loader)
    logger.values.pop("time_budget/progress", None)
    return module.traces, hears.calls, logger.values, {key: float(v) for key, v in made.callback_metrics.items()}


@pytest.mark.parametrize("warm_up", ["auto", True, False])
def test_a_run_under_a_budget_is_the_run_without_one(warm_up):
    plain = restless_run(max_steps=6)
    budgeted = restless_run(TimeBudget("6 steps", warm_up=warm_up))
    torch.testing.assert_close(budgeted, plain, rtol=0, atol=0)
    assert len(plain[0]) == 6


def test_attributes_stay_the_same_objects():
    module = Restless()
    history, x = module.history, module.sums["x"][0]
    kept = Attributes(module)
    history.append(1)
    module.history = [2]
    x += 1
    module.sums["x"].clear()
    module.new = 1
    kept.restore()
    assert module.history is history
    assert module.sums["x"][0] is x
    assert (history, float(x), hasattr(module, "new")) == ([], 0.0, False)


def test_a_copy_of_a_batch_does_not_copy_what_its_tensors_are_a_view_of():
    whole = torch.arange(1000)
    copy = cloned({"x": [whole[:2]], "name": "text"})
    copy["x"][0] += 5
    assert whole[:2].tolist() == [0, 1]
    assert copy["x"][0].untyped_storage().nbytes() == 16
    assert copy["name"] == "text"


@pytest.mark.parametrize(("warm_up", "passes"), [("auto", 0), (False, 0), (True, 2)])
def test_the_warm_up_is_run_where_it_is_asked_for_and_does_not_count(clock, capsys, warm_up, passes):
    budget = TimeBudget("10s", warm_up=warm_up)
    fit(Net(clock), budget)
    assert (budget.steps, budget.training_seconds) == (10, pytest.approx(10.0))
    assert clock.now == pytest.approx(1010.0 + passes)
    notes = [line for line in capsys.readouterr().err.splitlines() if "no warm-up pass" in line]
    assert len(notes) == (warm_up == "auto")
    assert all("Net.training_step may change more than can be put back (warm_up=True" in line for line in notes)


def test_a_module_can_declare_that_its_step_is_repeatable_and_one_that_overrides_the_step_has_to_declare_it_again(
    clock,
):
    class Pure(Net):
        repeatable_step = True

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    class Overriding(Pure):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    for module, warmed in ((Pure(clock), 2), (type("Derived", (Pure,), {})(clock), 2), (Overriding(clock), 0)):
        before = clock.now
        fit(module, TimeBudget("3s"))
        assert clock.now - before == pytest.approx(3 + warmed)


def test_a_step_of_anyones_module_that_has_begun_is_finished(clock):
    class Slowing(Net):
        def on_before_optimizer_step(self, optimizer):
            assert all(parameter.grad is not None for parameter in self.parameters())

        def on_train_batch_start(self, batch, batch_idx):
            self.seconds = 7.0 if self.global_step == 3 else 1.0

    budget = TimeBudget("6s")
    made = fit(Slowing(clock), budget)
    assert (budget.steps, made.global_step) == (4, 4)
    assert budget.training_seconds == pytest.approx(10.0)


def test_steps_left_out_by_returning_none(clock):
    class Choosy(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 2 == 0 else loss

    budget = TimeBudget("10s", warm_up=True)
    fit(Choosy(clock), budget, BudgetBar(), enable_progress_bar=True)
    assert budget.steps == 10


# Several optimizers


class GAN(Net):
    """Two optimizers, each with one step per batch."""

    def __init__(self, clock=None):
        super().__init__(clock)
        self.automatic_optimization = False
        self.critic = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        if self.clock is not None:
            self.clock.now += 1
        for optimizer, layer in zip(self.optimizers(), (self.layer, self.critic), strict=True):
            self.toggle_optimizer(optimizer)
            loss = layer(batch[0]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        self.log("own", loss)

    def configure_optimizers(self):
        return [torch.optim.Adam(self.layer.parameters(), lr=0.1), torch.optim.SGD(self.critic.parameters(), lr=0.5)]


@pytest.mark.parametrize(("limit", "batches"), [("10s", 10), ("7 steps", 3), ("8 steps", 4)])
def test_several_optimizers_are_stepped_as_often_as_global_step_says(clock, capsys, limit, batches):
    budget = TimeBudget(limit)
    made = fit(GAN(clock), budget, BudgetBar(), enable_progress_bar=True)
    assert budget.steps == made.global_step == 2 * batches
    assert "no warm-up pass: GAN optimizes manually, so a pass would change its weights" in capsys.readouterr().err


def test_a_warm_up_that_cannot_be_undone_is_rejected_where_it_is_asked_for():
    module = GAN()
    with pytest.raises(ConfigError, match=r"time_budget\.warm_up: True .*GAN optimizes manually.*: auto, false"):
        fit(module, TimeBudget("4 steps", warm_up=True))
    assert module.trainer.global_step == 0


def test_time_ends_a_run_whose_steps_lightning_does_not_see(clock):
    class Raw(Net):
        def __init__(self, clock):
            super().__init__(clock)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx).backward()
            self.optimizers(use_pl_optimizer=False).step()

    budget = TimeBudget("10s")
    fit(Raw(clock), budget)
    assert (budget.steps, budget.training_seconds) == (0, pytest.approx(10.0))


def test_progress_is_logged_under_the_steps_of_lightnings_own_values():
    logger = MemoryLogger()
    fit(GAN(), TimeBudget("12 steps"), logger=logger, log_every_n_steps=2)
    steps = [step for step, _ in logger.values["own"]]
    assert [step for step, _ in logger.values["time_budget/progress"]] == steps == [1, 3, 5]


def test_schedules_of_several_optimizers_and_groups():
    rates = []

    class Groups(GAN):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            rates.append([group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups])

        def configure_optimizers(self):
            first = [{"params": [self.layer.weight]}, {"params": [self.layer.bias], "lr": 0.3}]
            return [torch.optim.Adam(first, lr=0.1), torch.optim.SGD(self.critic.parameters(), lr=0.5)]

    schedules = Schedules({"lr": Linear(), "lr.2": Ramp(start=1.0, end=0.0)})
    fit(Groups(), TimeBudget("8 steps"), schedules)
    left = [[0.1 * share, 0.3 * share, share] for share in (1.0, 0.75, 0.5, 0.25)]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(left))


# A module's own scheduler


class Scheduled(Net):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_schedules_without_targets_are_rejected():
    with pytest.raises(ConfigError, match=r"schedules: 'Cosine' cannot be used; accepted: a mapping"):
        Schedules(Cosine())


def test_schedules_that_are_none_are_rejected():
    with pytest.raises(ConfigError, match=r"schedules\.lr: 'Cosine' cannot be used; accepted: a schedule"):
        Schedules({"lr": "Cosine"})


class SetRate(Callback):
    def __init__(self, rate):
        self.rate = rate

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.rate is not None:
            trainer.optimizers[0].param_groups[0]["lr"] = self.rate


@pytest.mark.parametrize(("rate", "notes"), [(None, 0), (0.25, 1)])
def test_a_learning_rate_that_a_callback_sets_beside_a_schedule_is_noted_once(capsys, rate, notes):
    made = fit(Net(), TimeBudget("4 steps"), SetRate(rate), Schedules({"lr": Linear()}))
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 4)
    said = "lr of the group 0 was set to 0.25 by another callback or the module: no effect, because a schedule sets it"
    err = capsys.readouterr().err
    assert (err.count(said), err.count("was set to")) == (notes, notes)


def test_a_monitor_logs_the_rate_of_each_step_and_of_each_epochs_first_step():
    logger, again = MemoryLogger(), MemoryLogger()
    schedules = Schedules({"lr": Linear(warmup=Duration.parse("3 steps"))})
    fit(Net(), TimeBudget("8 steps"), schedules, LearningRateMonitor("step"), logger=logger, log_every_n_steps=1)
    assert logger.values["lr-SGD"] == [(step, pytest.approx(rate)) for step, rate in logger.values["lr/0"]]
    assert logger.values["lr-SGD"][0] == (0, pytest.approx(0.025))
    fit(Net(), TimeBudget("8 steps"), schedules, LearningRateMonitor("epoch"), logger=again, log_every_n_steps=1)
    assert again.values["lr-SGD"] == [pytest.approx(logger.values["lr/0"][step]) for step in (0, 4)]


def test_a_monitor_that_would_log_the_rates_of_the_previous_step_is_rejected():
    made = trainer(LearningRateMonitor(), TimeBudget("3 steps"), Schedules({"lr": Cosine()}), logger=MemoryLogger())
    with pytest.raises(ConfigError, match="accepted: Schedules before LearningRateMonitor"):
        made.fit(Net(), rows())


@pytest.mark.parametrize(("module", "rate"), [(Net, 0.1), (Scheduled, 0.1 / 2**6)])
def test_a_rate_returns_to_the_given_one_without_its_schedule_unless_a_scheduler_sets_it(tmp_path, module, rate):
    path = tmp_path / "own.ckpt"
    first = trainer(TimeBudget("4 steps"), *([Schedules({"lr": Linear()})] if module is Net else []))
    first.fit(module(), rows())
    first.save_checkpoint(path)
    again = trainer(TimeBudget("6 steps"), Schedules({}))
    again.fit(module(), rows(), ckpt_path=path)
    assert again.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)


def test_an_option_whose_name_begins_like_a_given_value_is_left_alone():
    class Grad(Net):
        def configure_optimizers(self):
            return torch.optim.Adagrad(self.parameters(), lr=0.1, initial_accumulator_value=0.5)

    made = fit(Grad(), TimeBudget("2 steps"), Schedules({"lr": Cosine()}))
    assert made.optimizers[0].param_groups[0]["initial_accumulator_value"] == 0.5


def test_a_modules_own_scheduler_works_under_a_budget():
    made = fit(Scheduled(), TimeBudget("3 steps"))
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 8)


def test_a_modules_own_scheduler_beside_a_schedule_of_the_learning_rate_is_rejected():
    with pytest.raises(ConfigError, match=r"lr_schedule: 'Cosine' .*StepLR"):
        fit(Scheduled(), TimeBudget("3 steps"), Schedules({"lr": Cosine()}))
    with pytest.raises(ConfigError, match=r"schedules\.lr\.0: 'Cosine' .*StepLR"):
        fit(Scheduled(), TimeBudget("3 steps"), Schedules({"lr.0": Cosine()}))
    fit(Scheduled(), TimeBudget("3 steps"), Schedules({"weight_decay.0": Ramp(0.0, 0.1)}))


class Endless(Net):
    """Its scheduler has the length of the run, as Lightning knows it."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = self.make(optimizer, self.trainer.estimated_stepping_batches, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda optimizer, steps, _: CosineAnnealingLR(optimizer, steps), "CosineAnnealingLR.T_max: inf"),
        (lambda optimizer, _, steps: LinearLR(optimizer, total_iters=steps), "LinearLR.total_iters: -1"),
        (lambda optimizer, steps, _: LambdaLR(optimizer, lambda step: 1 - step / steps), "LambdaLR.lr_lambda: inf"),
        (lambda optimizer, steps, _: LambdaLR(optimizer, partial(max, steps)), "LambdaLR.lr_lambda: inf"),
        (
            lambda optimizer, steps, _: SequentialLR(
                optimizer, [ConstantLR(optimizer), CosineAnnealingLR(optimizer, steps)], [2]
            ),
            "SequentialLR.T_max: inf",
        ),
    ],
)
def test_a_scheduler_of_the_length_of_a_run_without_an_end_is_rejected(make, said):
    with pytest.raises(ConfigError, match=rf"configure_optimizers\.{said} cannot be used; only the budget ends"):
        fit(Endless(make), TimeBudget("3 steps"), max_epochs=-1)


def test_an_average_of_the_last_epochs_needs_a_number_of_epochs():
    averaging = StochasticWeightAveraging(0.1, swa_epoch_start=1)
    with pytest.raises(ConfigError, match=r"StochasticWeightAveraging' cannot be used; it would never average"):
        fit(Net(), TimeBudget("3 steps"), averaging, max_epochs=-1)


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer, steps, _: CosineAnnealingLR(optimizer, steps),
        lambda optimizer, _, before: LambdaLR(optimizer, lambda step: float(step > before)),  # -1 is no length
    ],
)
def test_schedulers_of_a_known_length_are_accepted(make):
    made = fit(Endless(make), TimeBudget("3 steps"), max_epochs=2)
    assert made.global_step == 3


# More than one fit


def test_another_trainer_starts_a_new_run_and_the_same_one_continues(clock, capsys):
    budget = TimeBudget("5s")
    for _ in range(2):
        made = fit(Net(clock), budget)
        assert (budget.steps, made.global_step) == (5, 5)
    before = capsys.readouterr().err
    made.fit(Net(clock), rows())
    assert (budget.steps, made.global_step) == (5, 5)
    assert "nothing is trained" in capsys.readouterr().err
    assert "nothing is trained" not in before


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("module", [Net, GAN])
def test_a_resumed_run_has_what_was_left_of_the_budget(clock, tmp_path, module, same):
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    budget = TimeBudget("10s")
    fit(module(clock), budget, saves, enable_checkpointing=True)
    budget = budget if same else TimeBudget("10s")  # a used budget is reset, too
    made = trainer(budget)
    made.fit(module(clock), rows(), ckpt_path=tmp_path / "step=4.ckpt")
    assert budget.training_seconds == pytest.approx(10.0)
    assert budget.steps == made.global_step == (10 if module is Net else 20)


# Other devices and ranks


@pytest.mark.parametrize(
    "options", [{"precision": "bf16-mixed"}, {"gradient_clip_val": 0.5}, {"reload_dataloaders_every_n_epochs": 1}]
)
def test_options_of_the_trainer(options):
    budget = TimeBudget("6 steps", warm_up=True)
    made = fit(Net(), budget, **options)
    assert budget.steps == made.global_step == 6


def test_workers_that_live_through_epochs():
    budget = TimeBudget("6 steps", warm_up=True)
    fit(Net(), budget, loader=rows(num_workers=1, persistent_workers=True, multiprocessing_context="fork"))
    assert budget.steps == 6


def test_a_clock_that_is_read_now_and_then_continues_where_tokens_are_not_known(clock, monkeypatch):
    monkeypatch.setattr("bytelm.callbacks.time_budget.runs_in_step_with_the_program", lambda *of: False)  # as on a GPU
    fractions = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *args):
            fractions.append(TimeBudget.of(trainer).progress.fraction)

    fit(Net(clock, 0.1), TimeBudget("3.05s"), Watch())
    assert fractions[:-1] == pytest.approx([0.1 * step / 3.05 for step in range(1, 30)])
    assert len(fractions) == 30


RANKS = """
import json, sys, torch, lightning.pytorch as pl
from torch.utils.data import DataLoader
from bytelm.callbacks import TimeBudget

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx):
        return self.layer(batch["input_ids"].float().mean().view(1)).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
    def on_fit_end(self):
        budget, rank = TimeBudget.of(self.trainer), self.trainer.global_rank
        with open(f"{rank}.json", "w") as file:
            json.dump([budget.steps, budget.tokens, budget.progress.fraction], file)

texts = [{"input_ids": torch.ones(1 + 9 * (i % 2))} for i in range(8)]  # of 1 token on one rank, of 10 on the other
off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
budget = TimeBudget(["60 tok", "1h"], warm_up=True)
trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=-1, callbacks=[budget], **off)
trainer.fit(Net(), DataLoader(texts, shuffle=False))
"""


def test_two_ranks_with_batches_of_different_lengths_count_together_and_stop_together(folder):
    ended = programs.run([sys.executable, "-c", RANKS])
    assert ended.returncode == 0, ended.stderr
    one, two = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == two == [5, 55, pytest.approx(55 / 60)]
