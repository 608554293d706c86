"""Schedules give the rates of their formulas, under every kind of budget, and set them in a run."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from memory_logger import MemoryLogger
from torch.utils.data import DataLoader, TensorDataset

from bytelm.budget import Progress
from bytelm.callbacks import Schedules
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.changes import combinations
from bytelm.errors import ConfigError
from bytelm.schedules import (
    Constant,
    Cosine,
    FromFunction,
    Linear,
    LRSchedule,
    Piecewise,
    Ramp,
    Schedule,
    WarmupStableDecay,
    merged,
)
from bytelm.units import Duration

PEAK, MIN_LR, MAX_ITERS = 6e-4, 6e-5, 5_000


def at_step(it: int, max_iters: int = MAX_ITERS) -> Progress:
    """Where a run limited to `max_iters` steps is when step `it` begins."""
    used = {"steps": float(it), "seconds": 0.0, "tokens": 0.0}
    return Progress(it / max_iters, used, {"steps": 1.0, "seconds": 0.0, "tokens": 0.0}, {"steps": max_iters})


def at_second(seconds: float, limit: float = 180.0, steps_per_second: float = 8.0) -> Progress:
    """Where a run limited to `limit` seconds is after some of them."""
    used = {"steps": seconds * steps_per_second, "seconds": seconds, "tokens": 0.0}
    per_step = {"steps": 1.0, "seconds": 1 / steps_per_second, "tokens": 0.0}
    return Progress(seconds / limit, used, per_step, {"seconds": limit})


def duration(text: str) -> Duration:
    return Duration.parse(text)


def nanogpt(it: int, warmup_iters: int, lr_decay_iters: int, learning_rate: float, min_lr: float) -> float:
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decayed = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + (learning_rate - min_lr) * (math.cos(math.pi * decayed) + 1) / 2


def warmup_stable_cosine(it: int, warmup_iters: int, lr_decay_iters: int, learning_rate: float, min_lr: float) -> float:
    warmup = max(warmup_iters, int(0.05 * lr_decay_iters))
    stable_until = int(0.72 * lr_decay_iters)
    if it < warmup:
        height = (1 - math.cos(math.pi * (it + 1) / (warmup + 1))) / 2
    elif it < stable_until:
        height = 1.0
    elif it <= lr_decay_iters:
        height = (1 + math.cos(math.pi * (it - stable_until) / (lr_decay_iters - stable_until))) / 2
    else:
        height = 0.0
    return min_lr + (learning_rate - min_lr) * height


def assert_same_rates(schedule: LRSchedule, expected: Callable[[int], float]) -> None:
    rates = [schedule.lr(PEAK, at_step(it)) for it in range(MAX_ITERS)]
    worst = max(range(MAX_ITERS), key=lambda it: abs(rates[it] - expected(it)))
    assert abs(rates[worst] - expected(worst)) < 1e-12, f"step {worst}: {rates[worst]} is not {expected(worst)}"


@pytest.mark.parametrize("lr_decay_iters", [4_000, MAX_ITERS])
@pytest.mark.parametrize("warmup_iters", [0, 100, 2_000])
def test_cosine_is_nanogpt_at_every_step(warmup_iters, lr_decay_iters):
    schedule = Cosine(
        warmup=duration(f"{warmup_iters} steps"), until=duration(f"{lr_decay_iters} steps"), min_lr_factor=MIN_LR / PEAK
    )
    assert_same_rates(schedule, lambda it: nanogpt(it, warmup_iters, lr_decay_iters, PEAK, MIN_LR))


@pytest.mark.parametrize("decay", ["1400 steps", "28%"])
@pytest.mark.parametrize("warmup_iters", [100, 2_000])
def test_warmup_stable_decay_is_the_warmup_stable_cosine_at_every_step(warmup_iters, decay):
    schedule = WarmupStableDecay(
        decay=duration(decay),
        decay_shape="cosine",
        min_lr_factor=MIN_LR / PEAK,
        warmup=duration(f"{max(warmup_iters, 250)} steps"),
        warmup_shape="cosine",
        warmup_from=MIN_LR / PEAK,
    )
    assert_same_rates(schedule, lambda it: warmup_stable_cosine(it, warmup_iters, MAX_ITERS, PEAK, MIN_LR))


@pytest.mark.parametrize("function", [nanogpt, warmup_stable_cosine])
@pytest.mark.parametrize(("warmup_iters", "lr_decay_iters"), [(2_000, 4_000), (100, None)])
def test_from_function_gives_the_functions_rates_at_every_step(function, warmup_iters, lr_decay_iters):
    schedule = FromFunction(function, warmup_iters, lr_decay_iters, MIN_LR)
    assert_same_rates(schedule, lambda it: function(it, warmup_iters, lr_decay_iters or MAX_ITERS, PEAK, MIN_LR))


@pytest.mark.parametrize(
    ("options", "progress", "it", "lr_decay_iters"),
    [
        ({}, at_step(29, 100), 29, 100),
        ({}, at_second(45), 1_250, 5_000),
        ({"max_iters": 1_000}, at_second(45), 250, 1_000),
        ({"max_iters": 1_000, "lr_decay_iters": 800}, at_second(180), 1_000, 800),
        ({"max_iters": 1_000}, at_step(25, 100), 250, 1_000),
        ({}, Progress(0.5, {"steps": 7.0, "seconds": 9.0}, limits={"steps": 100, "seconds": 18}), 50, 100),
    ],
)
def test_from_function_presents_any_run_as_one_of_max_iters_iterations(options, progress, it, lr_decay_iters):
    received = []
    schedule = FromFunction(lambda *arguments: received.append(arguments) or 0.5, 9, min_lr=0.1, **options)
    assert schedule.lr(2.0, progress) == 0.5
    assert received == [(it, 9, lr_decay_iters, 2.0, 0.1)]
    assert isinstance(received[0][0], int)


@pytest.mark.parametrize(
    ("warmup_iters", "options", "progress", "seen"),
    [
        ("5%", {}, at_step(0), int(MAX_ITERS * 0.05)),
        ("6%", {}, at_second(45), 300),
        ("5%", {"max_iters": 130}, at_second(45), 6),
        ("200 steps", {}, at_second(45), 200),
    ],
)
def test_from_functions_warmup_can_be_a_share_of_the_iterations(warmup_iters, options, progress, seen):
    received = []
    schedule = FromFunction(lambda *arguments: received.append(arguments[1]) or 0.5, duration(warmup_iters), **options)
    schedule.lr(2.0, progress)
    assert received == [seen]
    assert isinstance(received[0], int)


def test_from_functions_warmup_in_seconds_is_rejected():
    with pytest.raises(ConfigError, match=r"warmup_iters: '9s' cannot be used; accepted: 250, 250 steps, 5%"):
        FromFunction(nanogpt, duration("9s"))


@pytest.mark.parametrize(("learning_rate", "seen"), [(None, 0.04), (0.4, 0.4)])
def test_from_function_scales_the_rate_of_each_group(learning_rate, seen):
    schedule = FromFunction(nanogpt, 100, 4_000, MIN_LR, learning_rate=learning_rate)
    schedule.set_given([0.04, 0.01])
    for peak in (0.04, 0.01):
        rate = schedule.lr(peak, at_step(2_000, MAX_ITERS))
        assert rate == pytest.approx(nanogpt(2_000, 100, 4_000, seen, MIN_LR) * peak / seen)


@pytest.mark.parametrize(
    ("shape", "half"),
    [
        ("linear", 0.5),
        ("cosine", 0.5),
        ("sqrt", math.sqrt(0.5)),
        ("1-sqrt", 1 - math.sqrt(0.5)),
        ("inverse-sqrt", (1 / math.sqrt(5.5) - 1 / math.sqrt(10)) / (1 - 1 / math.sqrt(10))),
    ],
)
@pytest.mark.parametrize("min_lr_factor", [0.0, 0.1])
def test_decay_shapes_begin_at_the_peak_and_end_exactly_at_the_floor(shape, half, min_lr_factor):
    schedule = WarmupStableDecay(decay=duration("25%"), decay_shape=shape, min_lr_factor=min_lr_factor)
    multipliers = [schedule.multiplier(at_second(share * 180)) for share in (0.0, 0.5, 0.75, 0.875, 1.0)]
    assert multipliers[:3] == [1.0, 1.0, 1.0]
    assert multipliers[3] == pytest.approx(min_lr_factor + (1 - min_lr_factor) * half, abs=1e-15)
    assert multipliers[4] == min_lr_factor


@pytest.mark.parametrize("decay", ["20%", "36s", "36000ms", "288 steps"])  # of 180 s, at 8 steps a second
def test_under_a_time_limit_any_unit_of_decay_ends_with_the_run(decay):
    schedule = WarmupStableDecay(decay=duration(decay), min_lr_factor=0.2, warmup=duration("100 steps"))
    assert schedule.multiplier(at_second(0)) == pytest.approx(1 / 101)
    assert schedule.multiplier(at_second(5)) == pytest.approx(41 / 101)
    assert schedule.multiplier(at_second(12.5)) == 1.0
    assert schedule.multiplier(at_second(143.9)) == 1.0
    assert schedule.multiplier(at_second(144 + 9)) == pytest.approx(1 - 0.8 * 0.25)
    assert schedule.multiplier(at_second(144 + 27)) == pytest.approx(1 - 0.8 * 0.75)
    assert schedule.multiplier(at_second(180)) == 0.2


@pytest.mark.parametrize("warmup", ["10%", "18s"])
def test_a_warmup_in_time_or_percent_moves_with_the_first_step_and_ends_on_time(warmup):
    schedule = Constant(warmup=duration(warmup))
    step = 1 / 8
    assert schedule.multiplier(at_second(0)) == pytest.approx(step / (18 + step))
    assert schedule.multiplier(at_second(9)) == pytest.approx((9 + step) / (18 + step))
    assert schedule.multiplier(at_second(18 - step)) < 1
    assert schedule.multiplier(at_second(18)) == 1.0


@pytest.mark.parametrize(
    ("shape", "expected"), [("linear", 0.2 + 0.8 * 0.25), ("cosine", 0.2 + 0.8 * (1 - math.sqrt(0.5)) / 2)]
)
def test_warmup_shapes_rise_from_the_share_given(shape, expected):
    schedule = Constant(warmup=duration("3 steps"), warmup_shape=shape, warmup_from=0.2)
    assert schedule.multiplier(at_step(0)) == pytest.approx(expected, abs=1e-15)


def test_constant_stays_at_the_peak():
    assert [Constant().multiplier(at_step(it)) for it in (0, 2_500, 4_999, 5_000)] == [1.0] * 4


def test_linear_falls_in_a_straight_line_from_the_end_of_the_warmup():
    schedule = Linear(warmup=duration("1000 steps"), min_lr_factor=0.5)
    multipliers = [schedule.multiplier(at_step(it)) for it in (1_000, 2_000, 3_000, 5_000)]
    assert multipliers == pytest.approx([1.0, 0.875, 0.75, 0.5], abs=1e-15)


@pytest.mark.parametrize("schedule", [Cosine, Linear])
def test_a_fall_until_a_step_begins_at_the_peak_under_a_time_limit_too(schedule):
    assert schedule(until=duration("1000 steps")).multiplier(at_second(0)) > 0.9


@pytest.mark.parametrize(("warmup", "decay"), [("30%", "80%"), ("0.1%", "100%"), ("100%", "0.1%")])
def test_warmup_and_decay_beyond_the_whole_run_are_rejected(warmup, decay):
    with pytest.raises(ConfigError, match=f"^decay: '{decay}' cannot be used; .*less the warmup .*{warmup}"):
        WarmupStableDecay(decay=duration(decay), warmup=duration(warmup))


@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_warmup_and_decay_may_fill_the_whole_run(percent):
    WarmupStableDecay(decay=duration(f"{100 - percent}%"), warmup=duration(f"{percent}%"))


@given(
    make=st.sampled_from(
        [Constant, Cosine, Linear]
        + [
            lambda shape=shape, decay=decay, **options: WarmupStableDecay(duration(decay), shape, **options)
            for shape in ("linear", "cosine", "sqrt", "1-sqrt", "inverse-sqrt")
            for decay in ("0%", "20%", "30 steps", "100%")
        ]
    ),
    steps=st.integers(1, 60),
    warmup=st.integers(0, 70),
    warmup_shape=st.sampled_from(["linear", "cosine"]),
    warmup_from=st.floats(0, 1),
    min_lr_factor=st.floats(0, 1),
    timed=st.booleans(),
)
def test_a_warmup_never_falls_and_a_decay_never_rises(
    make, steps, warmup, warmup_shape, warmup_from, min_lr_factor, timed
):
    options = {"warmup": duration(f"{warmup} steps"), "warmup_shape": warmup_shape, "warmup_from": warmup_from}
    if make is not Constant:
        options["min_lr_factor"] = min_lr_factor
    schedule = make(**options)
    run = [at_second(it / 8, steps / 8) if timed else at_step(it, steps) for it in range(steps + 1)]
    rates = [schedule.multiplier(progress) for progress in run]
    rising, falling = rates[:warmup], rates[warmup:]
    assert all(later >= earlier for earlier, later in pairwise(rising))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(falling))
    assert all(0 <= rate <= 1 for rate in rates)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_ramp_goes_from_start_to_end_and_stays_there(shape):
    ramp = Ramp(0.85, 0.95, over=duration("300 steps"), shape=shape)
    for it in (0, 1, 150, 299, 300, 4_000):
        x = min(it / 300, 1)
        height = x if shape == "linear" else (1 - math.cos(math.pi * x)) / 2
        assert ramp.value(0.5, at_step(it)) == pytest.approx(0.85 + 0.1 * height, abs=1e-15)
    assert (ramp.value(0.5, at_step(0)), ramp.value(0.5, at_step(300))) == (0.85, 0.95)


@pytest.mark.parametrize("begin", ["1000 steps", "20%"])
@pytest.mark.parametrize("over", ["2000 steps", "40%"])
def test_a_ramp_may_begin_later_and_units_may_differ(begin, over):
    ramp = Ramp(start=1.0, end=3.0, over=duration(over), begin=duration(begin))
    values = [ramp.value(9.0, at_step(it)) for it in (0, 999, 1_000, 2_000, 3_000, 5_000)]
    assert values == pytest.approx([1.0, 1.0, 1.0, 2.0, 3.0, 3.0])


def test_a_ramp_defaults_to_the_given_value():
    assert [Ramp(end=0.0).value(4.0, at_step(it)) for it in (0, 2_500, 5_000)] == [4.0, 2.0, 0.0]
    assert [Ramp(start=0.0).value(4.0, at_step(it)) for it in (0, 2_500, 5_000)] == [0.0, 2.0, 4.0]
    assert (Ramp(end=0.0).reached(4.0), Ramp(start=0.0).reached(4.0)) == ([4.0, 0.0], [0.0, 4.0])
    with pytest.raises(ConfigError, match=r"^start: None .* for start, for end, or for both"):
        Ramp()


def test_a_ramp_of_no_length_is_a_jump():
    ramp = Ramp(1.0, 2.0, over=duration("0 steps"), begin=duration("10 steps"))
    assert [ramp.value(9.0, at_step(it)) for it in (9, 10, 11)] == [1.0, 2.0, 2.0]


def test_under_a_time_limit_a_ramp_in_steps_counts_steps():
    ramp = Ramp(0.0, 1.0, over=duration("80 steps"))  # 8 a second
    assert [ramp.value(9.0, at_second(second)) for second in (0, 5, 10, 11)] == [0.0, 0.5, 1.0, 1.0]


def test_pieces_change_at_the_first_step_at_or_after_their_point():
    pieces = Piecewise({"2 steps": 16, "50%": 32})
    assert [pieces.value(8, at_step(it, 10)) for it in (0, 1, 2, 4, 5, 9)] == [8, 8, 16, 16, 32, 32]
    assert isinstance(pieces.value(8, at_step(2, 10)), int)
    assert pieces.changes(8) == [(duration("0 steps"), 8), (duration("2 steps"), 16), (duration("50%"), 32)]
    assert Piecewise({"0%": 4, "3 steps": 5}).changes(8) == [(duration("0%"), 4), (duration("3 steps"), 5)]


@pytest.mark.parametrize("points", [{}, {"5": 1}, {"1 step": 1, "1 steps": 2}, {"9 steps": 1, "50%": 2, "8 steps": 3}])
def test_pieces_without_order_are_rejected(points):
    with pytest.raises(ConfigError, match=r"^points: "):
        Piecewise(points)


def test_other_schedules_multiply_the_given_value_and_have_no_list_of_values():
    assert Linear().value(0.1, at_step(2_500)) == 0.05
    assert Linear().changes(0.1) is None
    assert LRSchedule is Schedule


def test_a_schedule_that_defines_only_lr_sets_values_too():
    class Floor(LRSchedule):
        def lr(self, peak_lr, progress):
            return max(peak_lr * (1 - progress.fraction), 0.25)

    assert [Floor().value(1.0, at_step(it)) for it in (0, 2_500, 5_000)] == [1.0, 0.5, 0.25]


def test_lr_schedule_is_the_schedule_of_the_target_lr():
    cosine, ramp, default = Cosine(), Ramp(end=1.0), Constant()
    assert merged(cosine, {"lr.hidden": ramp}) == {"lr": cosine, "lr.hidden": ramp}
    assert merged(default, {"lr": ramp}) == {"lr": ramp}
    for other in (cosine, Constant(warmup=duration("5%"))):
        with pytest.raises(ConfigError, match=r"^schedules\.lr: 'Ramp' .*lr_schedule .* is given, too"):
            merged(other, {"lr": ramp})


SIZES, LENGTHS, WINDOWS = {"0%": 2, "50%": 6}, {"20 steps": 16, "60 steps": 32}, {"0%": 4, "80%": 8}


def combined(progress: Progress, **points: dict[str, int]) -> list[tuple[float, ...]]:
    changes = {name: Piecewise(of).changes(8) for name, of in points.items()}
    return [tuple(values.values()) for values in combinations(changes, progress)]


def test_the_warm_up_runs_only_combinations_that_occur():
    run = {"a": SIZES, "b": LENGTHS, "c": WINDOWS}
    reached = [(2, 8, 4), (2, 16, 4), (6, 16, 4), (6, 32, 4), (6, 32, 8)]
    assert combined(at_step(0, 100), **run) == reached
    assert combined(at_step(19, 100), **run) == reached
    assert combined(at_step(50, 100), **run) == reached[2:]
    assert combined(at_step(99, 100), **run) == reached[4:]
    stepped = {tuple(Piecewise(of).value(8, at_step(it, 100)) for of in run.values()) for it in range(100)}
    assert stepped == set(reached)


def test_points_beyond_the_end_are_not_run():
    assert combined(at_step(0, 60), a=LENGTHS) == [(8,), (16,)]
    assert combined(at_step(0, 60), a={"100%": 1, "60 steps": 2}) == [(8,)]


def test_changes_at_the_same_moment_make_one_combination():
    assert combined(at_step(0, 100), a={"50%": 1}, b={"50 steps": 2}) == [(8, 8), (1, 2)]


def test_points_of_one_unit_have_an_order_under_any_limit():
    assert combined(at_second(0), a={"10 steps": 1}, b={"20 steps": 2}) == [(8, 8), (1, 8), (1, 2)]
    # Also where nothing says yet how long the run is in this unit.
    assert combined(at_second(0), a={"10 tok": 1}, b={"20 tok": 2}) == [(8, 8), (1, 8), (1, 2)]


def test_where_the_order_is_not_known_all_combinations_are_run():
    assert set(combined(at_second(0), a={"10 steps": 1}, b={"5s": 2})) == {(8, 8), (8, 2), (1, 8), (1, 2)}
    assert set(combined(at_second(6), a={"90 steps": 1}, b={"5s": 2})) == {(8, 2), (1, 2)}


class Remaining(LRSchedule):
    def multiplier(self, progress: Progress) -> float:
        return 1 - progress.fraction


class TwoGroups(LightningModule):
    def __init__(self, **options: float) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
        self.options = options

    def training_step(self, batch, batch_idx):
        return self.head(self.body(batch[0])).square().mean()

    def configure_optimizers(self):
        body = {"params": self.body.parameters(), "lr": 0.5, "name": "body", **self.options}
        return torch.optim.SGD([body, {"params": self.head.parameters(), "lr": 0.1}])


class Watch(Callback):
    """Notes the rates that the optimizer steps with."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, ...]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(tuple(group["lr"] for group in optimizer.param_groups))
        self.initial = [group["initial_lr"] for group in optimizer.param_groups]


def fit(module: TwoGroups, *callbacks: Callback, logger: Logger | bool = False) -> Watch:
    watch = Watch()
    Trainer(
        accelerator="cpu",
        max_epochs=-1,
        log_every_n_steps=1,
        callbacks=[*callbacks, watch],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(TensorDataset(torch.ones(6, 4)), batch_size=2))
    return watch


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_users_own_schedule_sets_and_logs_the_rate_of_every_group_before_each_step():
    logger = MemoryLogger()
    watch = fit(TwoGroups(), TimeBudget(duration("5 steps")), Schedules({"lr": Remaining()}), logger=logger)
    left = [1.0, 0.8, 0.6, 0.4, 0.2]
    assert watch.rates == [pytest.approx((0.5 * share, 0.1 * share), abs=1e-15) for share in left]
    assert watch.initial == [0.5, 0.1]
    for tag, peak in (("lr/body", 0.5), ("lr/1", 0.1)):
        assert logger.values[tag] == [(step, pytest.approx(peak * share)) for step, share in enumerate(left)]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_initial_rate_of_a_resumed_group_is_kept():
    watch = fit(TwoGroups(initial_lr=2.0), TimeBudget(duration("2 steps")), Schedules({"lr": Remaining()}))
    assert watch.rates == [(2.0, 0.1), (1.0, 0.05)]
    assert watch.initial == [2.0, 0.1]


class Then(LRSchedule):
    """Gives a value from the middle of the run on."""

    def __init__(self, value: Any) -> None:
        self.then = value

    def multiplier(self, progress: Progress) -> Any:
        return 1.0 if progress.fraction < 0.5 else self.then

    def lr(self, peak_lr: float, progress: Progress) -> Any:
        multiplier = self.multiplier(progress)
        return multiplier and peak_lr * multiplier  # None stays None


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(("value", "shown"), [(-0.5, "-0.25"), (math.nan, "nan"), (math.inf, "inf"), (None, "None")])
def test_a_rate_that_no_step_can_have_ends_the_run_before_that_step(value, shown):
    watch = Watch()
    reason = rf"^schedules\.lr\.body: 'Then' .*; it gives {shown} at progress 0\.5000; accepted: finite numbers from 0$"
    with pytest.raises(ConfigError, match=reason):
        fit(TwoGroups(), TimeBudget(duration("4 steps")), Schedules({"lr": Then(value)}), watch)
    assert len(watch.rates) == 2


def test_a_schedule_without_a_budget_is_rejected():
    with pytest.raises(ConfigError, match=r"^trainer\.callbacks: .*TimeBudget"):
        fit(TwoGroups(), Schedules({"lr": Constant()}))
