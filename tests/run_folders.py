"""Run folders as bytelm leaves them, made without training."""

import json
from pathlib import Path

import yaml
from torch.utils.tensorboard import SummaryWriter

CORPUS = {"name": "corpus.txt", "bytes": 100, "sha256": "a"}


def config(limit="180s", seed=42, lr=3e-3, **gpt):
    """A resolved config with the keys that tests use."""
    sizes = {
        "d_model": 16,
        "n_layers": 1,
        "vocab_size": 256,
        "position": {"class_path": "bytelm.parts.position.Rotary"},
    }
    return {
        "seed_everything": seed,
        "trainer": {"gradient_clip_val": 1.0, "log_every_n_steps": 10},
        "model": {
            "gpt": {"class_path": "bytelm.gpt.GPT", "init_args": {**sizes, **gpt}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}},
        },
        "data": {"class_path": "bytelm.data.corpora.Bytes", "init_args": {"path": "corpus.txt"}},
        "time_budget": {"limit": limit},
        "lr_schedule": {"class_path": "bytelm.callbacks.Constant", "init_args": {"warmup": "0 steps"}},
    }


def make_run(experiment, val_bpb=2.0, at=0, status="completed", settings=None, version=0, **record):
    """Makes runs/<experiment>/version_N.

    Args:
        experiment: With the study, if there is one: `study/name`.
        val_bpb: Its score.
        at: Minute at which it ended.
        status: As in the record; None to leave no record.
        settings: Its config; default config().
        version: N.
        record: Further keys of the record.
    """
    folder = Path("runs", experiment, f"version_{version}")
    folder.mkdir(parents=True)
    settings = settings or config()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    if status is not None:
        values = {
            "status": status,
            "reason": None if status == "completed" else f"it was {status}",
            "val_bpb": val_bpb if status == "completed" else None,
            "total_steps": 100,
            "training_time_secs": 180.0,
            "total_time_secs": 190.0,
            "num_params_M": 0.2232,
            "tokens_per_sec": 30_000.0,
            "started_at": f"2026-01-01T00:{at:02}:00.000+00:00",
            "ended_at": f"2026-01-01T00:{at:02}:30.000+00:00",
            "seed": settings["seed_everything"],
            "device": "cpu",
            "world_size": 1,
            "corpus": CORPUS,
            "git": {"commit": "0123456789", "dirty": False},
            "versions": {"python": "3.11.7", "torch": "2.13.0", "lightning": "2.6.6", "bytelm": "0.1.0"},
            "run": str(folder),
        }
        (folder / "record.json").write_text(json.dumps({**values, **record}))
    return folder


def write_curve(folder, steps=200, scores=(1.0, 2.0)):
    """TensorBoard's log of a run: a loss at every step, and scores at equal distances."""
    with SummaryWriter(str(folder)) as writer:
        for step in range(1, steps + 1):
            writer.add_scalar("train/loss", 5.0 / step**0.2, step)
            writer.add_scalar("time_budget/progress", step / steps, step)
        for number, score in enumerate(scores, start=1):
            writer.add_scalar("val/bpb", score, number * steps // len(scores))
