"""A sample of text at each validation, which the training does not notice."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from added_callback import added_callback
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from token_shards import train_on_tokens

from bytelm.callbacks import Samples, TimeBudget, samples
from bytelm.data.train_tokenizer import train_tokenizer
from bytelm.inference.generate import continuation
from bytelm.strategies import FSDP

ON = ("--samples.max_new_tokens", "12", "--trainer.val_check_interval", "2 steps")
NO_CACHE = """
import torch

class Last(torch.nn.Module):
    "An attention without a cache, which draws random numbers."

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.out = torch.nn.Linear(d_model, d_model)

    def forward(self, x):
        return self.out(x) + torch.rand(1)
"""


def logged(run="runs/tiny/version_0"):
    """The logged samples, by step."""
    events = EventAccumulator(run).Reload()
    tag = f"{samples.TAG}/text_summary"
    if tag not in events.Tags()["tensors"]:
        return {}
    return {each.step: each.tensor_proto.string_val[0].decode() for each in events.Tensors(tag)}


def test_training_is_the_same_with_samples_and_without(run, capsys):
    Path("my_attention.py").write_text(NO_CACHE)
    options = ("--model.gpt.dropout", "0.2", "--model.gpt.attention", "my_attention.Last", *ON)
    cli = run(*options)
    err = capsys.readouterr().err
    other = run(*options, "--samples.max_new_tokens", "0")
    for mine, its in zip(cli.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    texts = logged()
    assert [*texts] == [1, 3]
    sample = Samples.of(cli.trainer).latest
    assert texts[3] == "    " + sample.text.replace("\n", "\n    ")
    assert sample.text.startswith(sample.prompt)
    assert len(sample.text) > len(sample.prompt)
    assert sample.prompt in cli.datamodule.corpus.stream.numpy().tobytes().decode()
    assert f"sample  continues {sample.prompt!r} of the validation text:\n" in err
    assert err.count("sample") == 1, "only the last one is printed"
    assert logged("runs/tiny/version_1") == {}
    assert "sample" not in capsys.readouterr().err


def test_the_text_is_what_the_network_generates_after_the_first_tokens_of_a_row(run, monkeypatch):
    monkeypatch.setattr(samples, "MOST_SECONDS", 1e9)
    cli = run("--samples.max_new_tokens", "20", "--samples.temperature", "0", "--samples.prompt_tokens", "8")
    (inputs, _) = next(iter(cli.datamodule.val_dataloader()))
    start = inputs[0, :9]  # with the marker of a row
    tokenizer = cli.datamodule.text_tokenizer()
    drawn = continuation(cli.model.gpt.eval(), tokenizer, start, 20, temperature=0)
    expected = tokenizer.decode([*start.tolist(), *drawn])
    assert Samples.of(cli.trainer).latest.text == samples._printable(expected)


def test_samples_of_tokens_are_text(run):
    train_on_tokens()
    train_tokenizer(iter(["to be or not to be, that is the question\n"] * 50), 300, Path("tokenizer.json"))
    options = ("--data.tokenizer", "tokenizer.json", "--samples.prompt_tokens", "5", "--samples.max_new_tokens", "6")
    cli = run(*options)
    (inputs, _) = next(iter(cli.datamodule.val_dataloader()))
    prompt = cli.datamodule.text_tokenizer().decode(inputs[0, :5].tolist())
    sample = Samples.of(cli.trainer).latest
    assert sample.prompt == samples._printable(prompt)
    assert [*logged()] == [3]


class Average(WeightAveraging):
    """An average that is 0."""

    def __init__(self):
        super().__init__(avg_fn=lambda average, current, n: torch.zeros_like(average))


class Watch(Callback):
    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.total = sum(float(each.abs().sum()) for each in pl_module.parameters())


@pytest.mark.slow
def test_an_average_is_sampled_if_it_is_scored(run):
    seen = []

    def record(gpt, *args, **options) -> Iterator[int]:
        seen.append(sum(float(each.abs().sum()) for each in gpt.parameters()))
        return iter([65])

    watch = Watch()
    with added_callback(watch), pytest.MonkeyPatch.context() as patch:
        patch.setattr("bytelm.run_callbacks._continuation", record)
        run(*ON, "--trainer.callbacks+=test_samples.Average")
    assert seen[-1] == watch.total == 0


def test_samples_take_a_small_share_of_the_time_and_the_last_one_a_second():
    budget = TimeBudget()
    trainer = SimpleNamespace(callbacks=[budget], should_stop=False)
    made = Samples()
    for seconds, expected in ((10.0, 0.5), (15.0, 0.25), (1000.0, 1.0)):
        budget._stopwatch.set(seconds)
        assert made._most_seconds(trainer) == pytest.approx(expected)
    trainer.should_stop = True
    assert made._most_seconds(trainer) == 1.0


def test_an_error_ends_the_samples_and_not_the_run(run, capsys, monkeypatch):
    calls = []

    def fail(*args, **options):
        calls.append(args)
        torch.rand(1)
        raise RuntimeError("no luck")

    monkeypatch.setattr("bytelm.run_callbacks._continuation", fail)
    run(*ON)
    assert len(calls) == 1
    err = capsys.readouterr().err
    assert err.count("note: no more samples of text: RuntimeError: no luck\n") == 1
    assert "sample  " not in err


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": FSDP()}, "under FSDP no rank has the whole network"),
        ({"data": object()}, "data of bytelm"),
        ({"scope": "run"}, "scope run does not stop"),
        ({"continuation": None}, "continuation is not set"),
        ({"tokenizer": None}, "the tokenizer of the data is not known"),
    ],
)
def test_the_reason_why_there_are_none_is_said(parser, capsys, changes, reason):
    from lightning.pytorch.strategies import SingleDeviceStrategy

    from bytelm.data.corpora import Bytes
    from bytelm.gpt import GPT

    data = changes.get("data", Bytes("corpus.txt"))
    if "tokenizer" in changes:
        data.text_tokenizer = lambda: None
    trainer = SimpleNamespace(
        is_global_zero=True,
        datamodule=data,
        strategy=changes.get("strategy", SingleDeviceStrategy()),
        callbacks=[TimeBudget(scope=changes.get("scope", "training"))],
    )
    made = Samples()
    made.continuation = changes.get("continuation", continuation)
    made.on_fit_start(trainer, SimpleNamespace(gpt=GPT(d_model=8, n_heads=1, n_layers=1)))
    assert reason in capsys.readouterr().err
    made.on_validation_batch_start(trainer, None, None, 0)
    assert made.latest is None


class Stored:
    """A logger's experiment that keeps its calls."""

    def __init__(self, **methods):
        self.calls = []
        for name in methods:
            setattr(self, name, lambda *args, **options: self.calls.append((args, options)))


def logger_of(name, experiment, **attributes):
    return type(name, (), {"experiment": experiment, **attributes})()


def test_loggers_get_a_sample_in_the_form_that_they_offer():
    sample, step = samples.Sample("To be", "To be\n or"), 7
    board = Stored(add_text=1)
    samples._log(logger_of("TensorBoardLogger", board), sample, step)
    assert board.calls == [(("val/sample", "    To be\n     or", 7), {})]
    flow = Stored(log_text=1)
    samples._log(logger_of("MLFlowLogger", flow, run_id="r"), sample, step)
    assert flow.calls == [(("r", "To be\n or", "samples/step_7.txt"), {})]
    comet = Stored(log_text=1)
    samples._log(logger_of("CometLogger", comet), sample, step)
    assert comet.calls == [(("To be\n or",), {"step": 7})]
    table = []
    wandb = logger_of("WandbLogger", None, log_text=lambda self, key, **options: table.append((key, options)))
    samples._log(wandb, sample, step)
    assert table == [
        ("val/sample", {"columns": ["prompt", "text"], "data": [["To be", "To be\n or"]], "step": 7}),
    ]
    samples._log(logger_of("CSVLogger", Stored()), sample, step)


def test_control_characters_do_not_reach_the_terminal():
    assert samples._printable("a\x1b[2J\tb\r\nc\0") == "a\ufffd[2J\tb\ufffd\nc\ufffd"
