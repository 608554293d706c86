"""Whole runs with all kinds of schedules: values that are set, logged, resumed, warmed up and rejected."""

import json
from pathlib import Path

import pytest
import torch
from added_callback import added_callback
from lightning.pytorch import Callback
from resuming import Signal, assert_same_checkpoints
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_ranks import Run, write_inputs
from thinned import thinned
from token_shards import train_on_tokens
from torch._dynamo.utils import counters

from bytelm.callbacks import TimeBudget
from bytelm.errors import Interrupted

PROJECT = Path(__file__).resolve().parents[2]
LAST = "runs/tiny/version_0/checkpoints/last.ckpt"


def scheduled(**targets):
    """Options of the command line; `data_batch_size` stands for `data.batch_size`, a mapping for Piecewise points."""
    schedules = {}
    for target, schedule in targets.items():
        if isinstance(schedule, dict) and "class_path" not in schedule:
            schedule = {"class_path": "Piecewise", "init_args": {"points": schedule}}
        schedules[target.replace("__", ".")] = schedule
    return ("--schedules", json.dumps(schedules))


def ramp(**options):
    return {"class_path": "Ramp", "init_args": options}


def logged(folder="runs/tiny/version_0"):
    """Returns the values of a run in TensorBoard's log, by tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def last_groups(path=LAST):
    (optimizer,) = torch.load(path, weights_only=True)["optimizer_states"]
    return {group["name"]: group for group in optimizer["param_groups"]}


class Steps(Callback):
    """Records the training batches of a run, and the options of its optimizer's steps."""

    def __init__(self):
        self.batches, self.options = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.options.append([dict(group, params=None) for group in optimizer.param_groups])

    @property
    def shapes(self):
        return [tuple(inputs.shape) for inputs, _ in self.batches]


@pytest.fixture
def steps(run):
    """Runs, and returns the records of the callback Steps."""

    def steps(*options):
        callback = Steps()
        with added_callback(callback):
            run(*options)
        return callback

    return steps


# Optimizers


def test_momentum_rises_and_weight_decay_falls_in_every_group_that_has_them(steps):
    taken = steps(
        *("--time_budget.limit", "8 steps", "--model.optimizer", "MuonAdamW"),
        *scheduled(momentum=ramp(start=0.85, end=0.95, over="4 steps"), weight_decay="Linear"),
    )
    momenta = [0.85, 0.875, 0.9, 0.925, 0.95, 0.95, 0.95, 0.95]
    values = logged()
    for group in ("hidden", "embedding", "vector"):
        assert values[f"momentum/{group}"] == pytest.approx(momenta)
        decay = [0.0 if group == "vector" else 0.1 * (1 - step / 8) for step in range(8)]
        assert values[f"weight_decay/{group}"] == pytest.approx(decay)
    names = [group["name"] for group in taken.options[0]]
    for groups, momentum in zip(taken.options, momenta, strict=True):
        by_name = dict(zip(names, groups, strict=True))
        assert by_name["hidden"]["momentum"] == pytest.approx(momentum)
        assert by_name["embedding"]["betas"] == (pytest.approx(momentum), 0.95)


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        (
            ["--time_budget.limit", "4 steps", "--lr_schedule", "Linear", "--lr_schedule.warmup", "4 steps"],
            ["lr_schedule.warmup: '4 steps' is not reached, because the run ends at 4 steps"],
        ),
        (
            [
                "--lr_schedule",
                "Linear",
                "--lr_schedule.warmup",
                "100%",
                *scheduled(momentum=ramp(end=0.9, over="5 steps")),
            ],
            [
                "lr_schedule.warmup: '100%' is not reached, because the run ends at 100%",
                "schedules.momentum.over: '5 steps' is not reached, because the run ends at 4 steps",
            ],
        ),
        (
            ["--time_budget.limit", "512 tok", *scheduled(momentum={"5 steps": 0.8, "1 ktok": 0.9})],
            [
                "schedules.momentum.points: '1 ktok' is not reached, because the run ends at 512 tok",
                "schedules.momentum.points: '5 steps' was not reached, because the run ended after 4 steps",
            ],
        ),
        (["--lr_schedule", "Linear", "--lr_schedule.warmup", "3 steps", *scheduled(momentum=ramp(end=0.9))], []),
    ],
)
def test_lengths_that_a_run_does_not_reach_are_noted(run, capsys, options, notes):
    run(*options)
    said = [line.partition("note: ")[2] for line in capsys.readouterr().err.splitlines() if "reached, because" in line]
    assert said == notes


def test_the_target_of_a_group_goes_before_that_of_all_groups(run):
    options = scheduled(lr__vector=ramp(start=0.0, end=1.0, over="4 steps"), weight_decay__vector={"50%": 0.5})
    run("--lr_schedule", "Linear", *options)
    values = logged()
    assert values["lr/hidden"] == values["lr/embedding"] == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3])
    assert values["lr/vector"] == pytest.approx([0.0, 0.25, 0.5, 0.75])
    assert values["weight_decay/vector"] == pytest.approx([0.0, 0.0, 0.5, 0.5])
    assert "weight_decay/hidden" not in values


def test_an_absolute_schedule_of_all_groups_leaves_out_those_without_the_option(run):
    run(*scheduled(weight_decay=ramp(end=0.5)))
    values = logged()
    assert values["weight_decay/hidden"] == pytest.approx([0.01, 0.1325, 0.255, 0.3775])
    assert "weight_decay/vector" not in values
    assert last_groups()["vector"]["weight_decay"] == 0.0


def test_schedules_lr_equals_lr_schedule(run):
    cosine = {"class_path": "Cosine", "init_args": {"warmup": "2 steps"}}
    run("--experiment", "one", "--lr_schedule", json.dumps(cosine))
    run("--experiment", "other", *scheduled(lr=cosine))
    one, other = (logged(f"runs/{name}/version_0") for name in ("one", "other"))
    assert one["lr/hidden"] == other["lr/hidden"]
    assert one["train/loss"] == other["train/loss"]


def test_a_rate_in_a_tensor_stays_in_that_tensor(run):
    Path("my_optimizers.py").write_text(
        "import torch\n\n\n"
        "class Compilable(torch.optim.AdamW):\n"
        "    def __init__(self, params, lr: float = 3e-3):\n"
        "        super().__init__(params, lr=torch.tensor(lr), capturable=False, foreach=False)\n"
        "        self.tensors = [group['lr'] for group in self.param_groups]\n"
    )
    options = ("--lr_schedule", "Linear", *scheduled(lr__hidden={"0%": 1e-3, "50%": 5e-4}))
    cli = run("--model.optimizer", "my_optimizers.Compilable", *options)
    (optimizer,) = cli.trainer.optimizers
    for group, tensor in zip(optimizer.param_groups, optimizer.tensors, strict=True):
        assert group["lr"] is tensor
        assert isinstance(group["initial_lr"], float)
    assert logged()["lr/hidden"] == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4])
    assert logged()["lr/vector"] == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3])


def test_the_given_values_are_in_the_checkpoint_and_come_back_without_the_schedule(run):
    momentum = scheduled(momentum=ramp(start=0.5, end=0.6, over="8 steps"))
    run("--lr_schedule", "Linear", *momentum)
    group = last_groups()["hidden"]
    assert (group["initial_lr"], group["initial_momentum"]) == (3e-3, 0.9)
    assert group["betas"][0] == pytest.approx(0.5 + 0.1 * 3 / 8)
    run("--ckpt_path", LAST, "--experiment", "with", "--time_budget.limit", "6 steps", *momentum)
    assert logged("runs/with/version_0")["momentum/hidden"][-2:] == pytest.approx([0.55, 0.5625])
    run("--ckpt_path", LAST, "--experiment", "without", "--time_budget.limit", "6 steps")
    group = last_groups("runs/without/version_0/checkpoints/last.ckpt")["hidden"]
    assert group["betas"][0] == 0.9
    assert "initial_momentum" not in group


# Sizes of batches


def test_batches_grow_and_their_tokens_are_counted(steps):
    taken = steps("--time_budget.limit", "6 steps", *scheduled(data__batch_size={"2 steps": 6, "50%": 8}))
    assert taken.shapes == [(4, 32)] * 2 + [(6, 32)] + [(8, 32)] * 3
    assert logged()["data/batch_size"] == [4, 4, 6, 8, 8, 8]
    assert json.loads(Path("runs/tiny/version_0/record.json").read_text())["tokens_seen"] == (4 * 2 + 6 + 8 * 3) * 32
    followed = torch.cat([targets for _, targets in taken.batches]).flatten()
    assert bytes(followed.tolist()) == Path("corpus.txt").read_bytes()[: len(followed)]


def test_rows_become_longer_without_skipping_or_repeating_a_byte(steps):
    lengths = {"0%": 8, "2 steps": 12, "5 steps": 32}
    taken = steps("--time_budget.limit", "7 steps", *scheduled(data__seq_len=lengths, data__batch_size={"4 steps": 3}))
    assert taken.shapes == [(4, 8)] * 2 + [(4, 12)] * 2 + [(3, 12)] + [(3, 32)] * 2
    followed = torch.cat([targets.flatten() for _, targets in taken.batches])
    assert bytes(followed.tolist()) == Path("corpus.txt").read_bytes()[: len(followed)]
    assert logged()["data/seq_len"] == [8, 8, 12, 12, 12, 32, 32]


def test_validation_keeps_the_sizes_of_the_config(run):
    sizes = []

    class Validation(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            sizes.append(tuple(batch[0].shape))

    with added_callback(Validation()):
        run("--trainer.val_check_interval", "2", *scheduled(data__batch_size={"0%": 2}, data__seq_len={"0%": 8}))
    assert set(sizes) == {(4, 32)}
    assert len(sizes) == 2 * 8


def test_accumulated_batches_change_with_the_step(steps):
    options = ("--trainer.accumulate_grad_batches", "3", "--time_budget.limit", "4 steps")
    taken = steps(*options, *scheduled(data__batch_size={"0%": 2, "2 steps": 5}))
    assert taken.shapes == [(2, 32)] * 6 + [(5, 32)] * 6
    assert json.loads(Path("runs/tiny/version_0/record.json").read_text())["tokens_seen"] == 6 * 7 * 32


@pytest.mark.parametrize(
    ("limit", "points", "sizes"),
    thinned(
        [
            ("1000 tok", {"256 tok": 12}, [4, 4, 12]),  # 256 + 384 = 640; another 384 would be 1024
            ("1024 tok", {"256 tok": 12}, [4, 4, 12, 12]),
            ("640 tok", {"256 tok": 12}, [4, 4, 12]),
            ("639 tok", {"256 tok": 12}, [4, 4]),
            ("1000 tok", {"0%": 12, "384 tok": 2}, [12, *[2] * 9]),  # 384 + 9 * 64 = 960
        ],
        3,
        several=True,
    ),
)
def test_a_budget_of_tokens_is_not_overshot_when_batches_change(steps, limit, points, sizes):
    taken = steps("--time_budget.limit", limit, *scheduled(data__batch_size=points))
    assert [rows for rows, _ in taken.shapes] == sizes


def test_in_token_shards_lengths_change_in_both_orders(steps):
    train_on_tokens()
    lengths, sizes = {"0%": 5, "2 steps": 16}, {"3 steps": 2}
    for order in ("sequential", "random"):
        taken = steps("--data.order", order, *scheduled(data__seq_len=lengths, data__batch_size=sizes))
        assert taken.shapes == [(4, 5)] * 2 + [(4, 16), (2, 16)]
        for inputs, targets in taken.batches:
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
        if order == "sequential":
            rows = [row for inputs, _ in taken.batches for row in inputs]
            followed = [targets.flatten() for _, targets in taken.batches]
            first_inputs = [int(row[0]) for row in rows[1:]]
            last_targets = [int(row[-1]) for targets in taken.batches for row in targets[1]][:-1]
            assert first_inputs == last_targets, "each row begins with the token that the one before ended with"
            assert len(torch.cat(followed)) == 4 * 5 * 2 + 6 * 16


# Resuming after a cut

CHANGING = scheduled(
    data__batch_size={"0%": 2, "3 steps": 5},
    data__seq_len={"0%": 8, "5 steps": 32},
    momentum=ramp(start=0.85, end=0.95, over="6 steps"),
    weight_decay="Cosine",
)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("bytes", (3, 5)),
        ("sequential", (4,)),
        pytest.param("random", (3,), marks=pytest.mark.slow),
        *(pytest.param(kind, (2, 3, 4, 5, 6), marks=pytest.mark.slow) for kind in ("bytes", "sequential", "random")),
    ],
)
def test_a_run_that_is_cut_around_changes_resumes_as_if_uninterrupted(run, kind, steps):
    options = ("--time_budget.limit", "8 steps", *CHANGING)
    if kind != "bytes":
        train_on_tokens()
        options = (*options[:2], *scheduled(data__batch_size={"0%": 2, "3 steps": 5}, data__seq_len={"5 steps": 12}))
        options += ("--data.order", kind)
    run("--experiment", "uncut", *options)
    for step in steps:
        signal = Signal("on_train_batch_end", step)
        with added_callback(signal), pytest.raises(Interrupted):
            run("--experiment", f"cut-{step}", *options)
        run("--experiment", f"cut-{step}", "--ckpt_path", "last", *options)
        assert_same_checkpoints("runs/uncut/version_0", f"runs/cut-{step}/version_0")
        ours, uncut = logged(f"runs/cut-{step}/version_0"), logged("runs/uncut/version_0")
        assert ours.keys() == uncut.keys()
        for tag in ours.keys() - {"throughput/tokens_per_sec"}:
            assert ours[tag] == uncut[tag], (step, tag)


@pytest.mark.parametrize("order", thinned(["shuffled", "folds"], 1))
def test_other_orders_continue_with_another_batch_size(run, order):
    options = ("--time_budget.limit", "8 steps", "--data.order", order, *scheduled(data__batch_size={"3 steps": 6}))
    run("--experiment", "uncut", *options)
    for step in (3, 4):
        with added_callback(Signal("on_train_batch_end", step)), pytest.raises(Interrupted):
            run("--experiment", f"cut-{step}", *options)
        run("--experiment", f"cut-{step}", "--ckpt_path", "last", *options)
        assert_same_checkpoints("runs/uncut/version_0", f"runs/cut-{step}/version_0")


def test_two_ranks_change_sizes_together(tmp_path):
    write_inputs(tmp_path)
    options = ("--time_budget.limit", "8 steps", *CHANGING)
    run = Run(tmp_path, *options)
    try:
        run.ended_well()
    finally:
        run.kill()
    assert run.record()["tokens_seen"] == 2 * (3 * 2 * 8 + 2 * 5 * 8 + 3 * 5 * 32)
    values = logged(tmp_path / "runs/tiny/version_0")
    assert values["data/batch_size"] == [2, 2, 2, 5, 5, 5, 5, 5]
    assert values["data/seq_len"] == [8, 8, 8, 8, 8, 32, 32, 32]
    zero, one = (run.events(rank, "end") for rank in (0, 1))
    assert zero == one
    assert run.checkpoint()["Bytes"]["position"] == 2 * (3 * 2 + 5 * 5)


# Parts, and the warm-up

WINDOWED = ("--model.gpt.n_layers", "3", "--model.gpt.attention", "{class_path: WindowedSDPA, init_args: {window: 32}}")


class Windows(Callback):
    """Records the windows of all layers in each training step, including the warm-up's, and in each validation."""

    def __init__(self):
        self.trained, self.validated = [], []

    @staticmethod
    def of(pl_module):
        return [block.attention.window for block in pl_module.gpt.blocks]

    def on_fit_start(self, trainer, pl_module):
        def note(gpt, inputs):
            if gpt.training:
                self.trained.append(self.of(pl_module))

        pl_module.gpt.register_forward_pre_hook(note)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated.append(self.of(pl_module))


def test_an_option_that_parts_declare_is_set_in_training_and_given_back_for_validation(run):
    windows = Windows()
    with added_callback(windows):
        options = scheduled(attention__window={"0%": 4, "3 steps": 8})
        cli = run("--trainer.val_check_interval", "2", *WINDOWED, *options)
    warm_up, trained = windows.trained[:3], windows.trained[3:]
    assert warm_up == [[8] * 3, [4] * 3, [4] * 3]
    assert trained == [[4] * 3] * 3 + [[8] * 3]
    assert windows.validated
    assert all(window == [32] * 3 for window in windows.validated)
    assert Windows.of(cli.model) == [32] * 3
    assert logged()["attention/window"] == [4, 4, 4, 8]


@pytest.fixture
def traced(monkeypatch):
    """Makes torch.compile only trace, which takes a hundredth of the time; returns the number of graphs so far."""
    torch._dynamo.reset()
    compile = torch.compile

    def traced(*args, **options):
        return compile(*args, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", traced)
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


class Graphs(Callback):
    def __init__(self, count):
        self.count, self.counts, self.seconds = count, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.counts.append(self.count())


@pytest.mark.parametrize("compile", thinned(["blocks", "true"], 1))
def test_every_size_and_window_is_compiled_once_and_before_the_clock_starts(run, traced, compile):
    before = traced()
    graphs = Graphs(traced)
    sizes = {"0%": 2, "2 steps": 6}
    lengths = {"0%": 8, "3 steps": 16, "4 steps": 32}
    with added_callback(graphs):
        options = scheduled(data__batch_size=sizes, data__seq_len=lengths, attention__window={"0%": 4, "5 steps": 12})
        run("--model.compile", compile, "--time_budget.limit", "7 steps", *WINDOWED, *options)
    assert len(graphs.counts) == 7
    assert set(graphs.counts) == {traced()}, "nothing is compiled after the clock has started"
    of_loss = 4  # (2, 8), (6, 8), (6, 16), (6, 32)
    of_network = 5 if compile == "true" else 5 + 4  # and (6, 32) with another window, except for the last block
    assert traced() - before == of_loss + of_network


@pytest.mark.slow
def test_more_values_than_torch_compiles_by_default_are_all_compiled(run, traced):
    graphs = Graphs(traced)
    lengths = {f"{step} steps": 4 + 2 * step for step in range(14)}
    with added_callback(graphs):
        run("--model.compile", "true", "--time_budget.limit", "15 steps", *scheduled(data__seq_len=lengths))
    assert len(graphs.counts) == 15
    assert set(graphs.counts) == {traced()}


def test_the_warm_up_of_all_sizes_takes_no_training_time_and_changes_nothing(run, monkeypatch):
    options = (*WINDOWED, *CHANGING)
    dropout = ("--model.gpt.dropout", "0.2", "--time_budget.limit", "7 steps")
    run("--experiment", "with", *options, *dropout)
    passes = []

    def no_warm_up(trainer, pl_module, first_batch, later, keep_attributes):
        passes.append(len([*later]))
        return 0.0

    monkeypatch.setattr("bytelm.callbacks.time_budget.warm_up", no_warm_up)
    run("--experiment", "without", *options, *dropout)
    assert passes == [2]
    assert_same_checkpoints("runs/with/version_0", "runs/without/version_0")


def test_the_clock_stands_still_in_the_warm_up(run):
    class Late(Callback):
        def on_train_start(self, trainer, pl_module):
            self.before = TimeBudget.of(trainer).training_seconds

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                self.at_first_step = TimeBudget.of(trainer).steps

    late = Late()
    with added_callback(late):
        cli = run(*scheduled(data__batch_size={"50%": 64}))
    assert late.before == 0
    budget = TimeBudget.of(cli.trainer)
    assert budget.training_seconds < budget.startup_seconds


# Rejected schedules

SIZES = "accepted: Piecewise, of whole numbers above 0"


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"lr__hiden": "Cosine"}, ["schedules.lr.hiden", "did you mean lr.hidden?", "lr.hidden, lr.embedding"]),
        (
            {"nesterov": {"0%": 1}},
            ["schedules.nesterov", "eps, lr, momentum, weight_decay", "data.batch_size; data.seq"],
        ),
        ({"attention__window": {"0%": 1}}, ["schedules.attention.window", "accepted here"]),
        ({"data__path": {"0%": 1}}, ["schedules.data.path", "data.batch_size"]),
        ({"data__batch_size": "Cosine"}, ["schedules.data.batch_size", "not known beforehand", SIZES]),
        ({"data__batch_size": {"50%": 2.5}}, ["schedules.data.batch_size", "[4, 2.5]", SIZES]),
        ({"data__batch_size": {"50%": 0}}, ["schedules.data.batch_size", "[4, 0]", SIZES]),
        ({"data__seq_len": {"50%": 64}}, ["schedules.data.seq_len", "64", "up to max_seq_len, which is 32"]),
        ({"lr__vector": {"5 stops": 1}}, ["points", "'5 stops' is not a duration", "500 steps"]),
        ({"lr__vector": {}}, ["points: {}", "{0%: 8, 50%: 16}"]),
        ({"lr__vector": {"50%": 1, "20%": 2}}, ["points", "ascending order"]),
        ({"momentum": "Csine"}, ["schedules: 'Csine' is not known", "did you mean Cosine?", "Piecewise, Ramp"]),
        ({"momentum": ramp(strt=1)}, ["schedules.strt: unknown key", "did you mean start?"]),
        ({"momentum": ramp()}, ["start: None", "for start, for end, or for both"]),
        ({"weight_decay": ramp(end=-0.1)}, ["schedules.weight_decay: 'Ramp'", "it gives -0.1; accepted", "from 0"]),
        ({"lr__vector": {"50%": ".inf"}}, ["schedules.lr.vector: 'Piecewise'", "it gives inf; accepted: finite"]),
        ({"lr": "Cosine"}, ["schedules.lr", "lr_schedule (Linear) is given, too"]),
    ],
)
def test_invalid_schedules_are_rejected_in_one_line(rejected, targets, words):
    line = rejected("--lr_schedule", "Linear", *scheduled(**targets))
    for word in words:
        assert word in line, line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "targets", "words"),
    [
        (
            ("--data.order", "shuffled"),
            {"data__seq_len": {"50%": 8}},
            ["data.seq_len", "data.order sequential", "shuffled"],
        ),
        (("--data.order", "folds"), {"data__seq_len": {"50%": 8}}, ["data.seq_len", "data.order sequential", "folds"]),
        (WINDOWED, {"attention__window": ramp(end=4.0)}, ["schedules.attention.window", "fractions", "as 32 is"]),
        (
            ("--model.optimizer", "MuonAdamW"),
            {"ns_steps": ramp(end=3)},
            ["schedules.ns_steps", "fractions", "Piecewise, of whole numbers"],
        ),
        (
            ("--model.optimizer", "{class_path: SGD, init_args: {lr: 0.1}}"),
            {"momentum": ramp(end=0.9)},
            ["schedules.momentum", "all groups have 0", "momentum.<group>"],
        ),
        (
            ("--divergence.on_divergence", "rewind"),
            {"lr__hidden": ramp(end=0.1)},
            ["divergence.on_divergence: 'rewind'", "schedules.lr.hidden", "accepted: stop"],
        ),
    ],
)
def test_incompatible_settings_are_rejected_in_one_line(rejected, options, targets, words):
    line = rejected(*options, *scheduled(**targets))
    for word in words:
        assert word in line, line


def test_a_batch_larger_than_a_fold_is_rejected_before_the_run_has_a_folder(rejected):
    line = rejected("--data.order", "folds", *scheduled(data__batch_size={"50%": 10_000}), status=3)
    assert "schedules.data.batch_size: 10000 cannot be used; accepted: up to" in line
    assert not Path("runs").exists()


def test_rows_longer_than_the_text_are_rejected(rejected):
    options = ("--model.gpt.max_seq_len", "100000")
    line = rejected(*options, *scheduled(data__seq_len={"50%": 100_000}), status=3)
    assert "schedules.data.seq_len: 100000 cannot be used; accepted: up to" in line


FADING = """
from torch import nn


class Fading(nn.Module):
    schedulable = ("scale",)

    def __init__(self, d_model: int, d_ff: int, scale: float = 1.0):
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.scale = scale

    def forward(self, x):
        return self.scale * self.down(self.up(x).relu())
"""


FADED = ("--model.gpt.feedforward", "my_parts.Fading", *scheduled(feedforward__scale=ramp(start=0.0)))


def test_a_users_part_declares_an_option_that_moves_in_every_step(run):
    Path("my_parts.py").write_text(FADING)
    run(*FADED)
    assert logged()["feedforward/scale"] == pytest.approx([0.0, 0.25, 0.5, 0.75])


def test_an_option_that_moves_in_every_step_is_rejected_where_each_value_would_be_compiled(folder, rejected):
    Path("my_parts.py").write_text(FADING)
    line = rejected("--model.compile", "true", *FADED)
    assert "schedules.feedforward.scale: 'Ramp' cannot be used; with model.compile" in line


def test_a_schedule_of_the_users_own_sets_batch_sizes(steps):
    Path("my_schedules.py").write_text(
        "from bytelm.callbacks import Piecewise\n\n\n"
        "class Doubling(Piecewise):\n"
        "    def __init__(self, every: int, times: int):\n"
        "        super().__init__({f'{every * n} steps': 2 * 2**n for n in range(times)})\n"
    )
    doubling = {"class_path": "my_schedules.Doubling", "init_args": {"every": 2, "times": 3}}
    taken = steps("--time_budget.limit", "7 steps", *scheduled(data__batch_size=doubling))
    assert [rows for rows, _ in taken.shapes] == [2, 2, 4, 4, 8, 8, 8]


def test_the_example_of_the_docs_trains(run):
    text = (PROJECT / "docs/schedules.md").read_text()
    example = text.split("## Scheduling anything", 1)[1].split("```yaml\n", 1)[1].split("```", 1)[0]
    for large, small in (("128", "16"), ("256", "32"), ("8, 50%: 16", "2, 50%: 4")):  # sizes for tiny.yaml's network
        assert large in example
        example = example.replace(large, small)
    Path("example.yaml").write_text(example)
    run("--config", "example.yaml", "--model.optimizer", "MuonAdamW", *WINDOWED)
    values = logged("runs/tiny+example/version_0")
    assert values["data/batch_size"] == [2, 2, 4, 4]
    assert values["data/seq_len"] == [16, 32, 32, 32]
    assert values["attention/window"] == [32, 32, 32, 16]
    assert values["momentum/hidden"] == pytest.approx([0.85 + 0.1 * step / 300 for step in range(4)])
    assert values["weight_decay/hidden"] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert values["lr/embedding"][3] < values["lr/embedding"][2]
    assert len(set(values["lr/hidden"])) == 1
