"""The challenge's runs as configs: each run has one with the reported size and score, which trains."""

import json
from pathlib import Path

import pytest
import yaml
from thinned import thinned

from bytelm.cli import build
from bytelm.config.flat import flat
from configs import merged

PROJECT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((PROJECT / "configs" / "autoresearch").iterdir())

# Number: val_bpb, steps and thousands of parameters as the challenge's tables report them (None: they do not), and the
# number of parameters worked out by hand: with width d, L layers and a feed-forward of f,
#   256 d (embedding) + 256 d (learned positions) + L (4 d^2 + 2 d f + f + 9 d) + 2 d (last norm),
# without 256 d under rotary positions, with another L (d f + f) under SwiGLU, and with 256 d + 256 for the head of the
# baseline, which is not tied.
RUNS = {
    0: ("3.728", 65, 892, 891_904),
    1: ("3.578", 121, 859, 858_880),
    2: ("3.581", 121, 859, 858_880),
    3: ("3.497", 206, 385, 384_864),
    4: ("3.582", 203, 859, 858_880),
    5: ("3.509", 233, 233, 232_832),
    6: ("3.553", 161, 497, 496_704),
    7: ("3.696", None, None, 384_864),
    8: ("3.490", None, None, 384_864),
    9: ("3.492", None, None, 384_864),
    10: ("3.642", None, None, 385_248),
    11: ("3.543", None, None, 458_976),
    12: ("4.332", None, None, 384_864),
    13: ("3.517", None, None, 384_864),
    14: ("3.489", 284, 275, 274_640),
    15: ("3.492", 225, 327, 327_448),
    16: ("3.484", 238, 226, 226_440),
    17: ("3.503", 300, 183, 182_848),
    18: ("3.491", 239, 226, 226_440),
    20: ("3.492", 237, 226, 226_440),
    21: ("3.554", 179, 290, 289_584),
    22: ("3.049", 208, 208, 208_008),
    23: ("3.066", 187, 360, 360_288),
    24: ("3.027", 214, 208, 208_008),
    25: ("3.090", 209, 208, 208_008),
    26: ("3.037", 255, 167, 166_464),
    27: ("2.973", 229, 254, 254_160),
    28: ("3.013", None, None, 254_160),
    29: ("3.020", None, None, 304_920),
    30: ("3.046", None, None, 254_160),
    31: ("2.981", None, None, 254_160),
    32: ("2.950", 243, 223, 223_248),
    33: ("2.984", None, None, 192_336),
    34: ("2.956", None, None, 223_248),
    35: ("2.983", None, None, 223_248),
    37: ("3.237", None, None, 223_248),
}

LEARNED = {"gpt.position": "Learned", "gpt.position.std": 0.02, "gpt.position.base": None}
COSINE = {"lr_schedule": "Cosine", "lr_schedule.min_lr_factor": 0.0, "lr_schedule.until": "100%"}
# The settings of each run, as differences from those of run 32 (None: there is no such setting).
SETTINGS = {
    0: {
        **{**LEARNED, "gpt.d_model": 128, "gpt.n_layers": 4, "gpt.d_ff": 512, "gpt.attention": "Explicit"},
        **{"gpt.attention.dropout": 0.1, "gpt.feedforward": "ReLU", "gpt.feedforward.dropout": 0.1},
        **{"gpt.feedforward.approximate": None, "gpt.block": "PostNorm", "gpt.init.scale_residual": False},
        **{"gpt.tie_embeddings": False, "gpt.head_bias": True, "optimizer": "Adam", "optimizer.lr": 0.001},
        **{"optimizer.betas": [0.9, 0.999], "optimizer.weight_decay": 0.0, "optimizer.fused": None},
        **{"lr_schedule.warmup": "0 steps", "trainer.gradient_clip_val": None},
    },
    1: {**LEARNED, "gpt.d_model": 128, "gpt.n_layers": 4, "gpt.d_ff": 512, **COSINE},
    2: {**LEARNED, "gpt.d_model": 128, "gpt.n_layers": 4, "gpt.d_ff": 512},
    3: {**LEARNED, "gpt.d_model": 96, "gpt.d_ff": 384},
    4: {**LEARNED, "gpt.d_model": 128, "gpt.n_layers": 4, "gpt.d_ff": 512, "data.batch_size": 8},
    5: {**LEARNED, "gpt.d_model": 64, "gpt.n_layers": 4},
    6: {**LEARNED, "gpt.d_model": 96, "gpt.n_layers": 4, "gpt.d_ff": 384},
    7: {**LEARNED, "gpt.d_model": 96, "gpt.d_ff": 384, "optimizer.lr": 0.005},
    8: {**LEARNED, "gpt.d_model": 96, "gpt.d_ff": 384, "optimizer.lr": 0.002},
    9: {**LEARNED, "gpt.d_model": 96, "gpt.d_ff": 384, **COSINE},
    10: {**LEARNED, "gpt.d_model": 96, "gpt.feedforward": "SwiGLU", "gpt.feedforward.approximate": None},
    11: {**LEARNED, "gpt.d_model": 96, "gpt.d_ff": 512},
    12: {**LEARNED, "gpt.d_model": 96, "gpt.d_ff": 384, "loss.label_smoothing": 0.1},
    13: {**LEARNED, "gpt.d_model": 96, "gpt.d_ff": 384, "data.batch_size": 32},
    14: {**LEARNED, "gpt.d_ff": 320},
    15: {**LEARNED, "gpt.d_model": 88, "gpt.d_ff": 352},
    16: {**LEARNED, "gpt.d_model": 72, "gpt.d_ff": 288},
    17: {**LEARNED, "gpt.d_model": 64},
    18: {**LEARNED, "gpt.d_model": 72, "gpt.d_ff": 288, "optimizer.lr": 0.0025},
    20: {**LEARNED, "gpt.d_model": 72, "gpt.d_ff": 288, "gpt.n_heads": 2},
    21: {**LEARNED, "gpt.d_model": 72, "gpt.d_ff": 288, "gpt.n_layers": 4},
    22: {"gpt.d_model": 72, "gpt.d_ff": 288, "optimizer.lr": 0.002},
    23: {"gpt.d_model": 96, "gpt.d_ff": 384, "optimizer.lr": 0.002},
    24: {"gpt.d_model": 72, "gpt.d_ff": 288},
    25: {"gpt.d_model": 72, "gpt.d_ff": 288, "optimizer.lr": 0.004},
    26: {"gpt.d_model": 64},
    27: {"gpt.d_ff": 320},
    28: {"gpt.d_ff": 320, "optimizer.lr": 0.002},
    29: {"gpt.d_model": 88, "gpt.d_ff": 352},
    30: {"gpt.d_ff": 320, **COSINE},
    31: {"gpt.d_ff": 320, "optimizer.lr": 0.0035},
    32: {},
    33: {"gpt.d_ff": 192},
    34: {"optimizer.lr": 0.0035},
    35: {"optimizer.weight_decay": 0.05},
    37: {"gpt.embedding": "ScaledEmbedding"},
}
# Those of run 32 itself.
BEST = {
    **{"gpt.d_model": 80, "gpt.n_heads": 4, "gpt.n_layers": 3, "gpt.d_ff": 256, "gpt.position": "Rotary"},
    **{"gpt.position.base": 10000.0, "gpt.embedding": "TokenEmbedding", "gpt.attention": "SDPA"},
    **{"gpt.attention.dropout": 0.0, "gpt.feedforward": "GELU", "gpt.feedforward.dropout": 0.0},
    **{"gpt.feedforward.approximate": "none", "gpt.block": "PreNorm", "gpt.init.scale_residual": True},
    **{"gpt.tie_embeddings": True, "gpt.head_bias": False, "loss.label_smoothing": 0.0, "optimizer": "AdamW"},
    **{"optimizer.lr": 0.003, "optimizer.betas": [0.9, 0.95], "optimizer.weight_decay": 0.1, "optimizer.fused": True},
    **{"data": "Shakespeare", "data.batch_size": 16, "data.seq_len": 256, "time_budget.limit": "180s"},
    **{"lr_schedule": "Constant", "lr_schedule.warmup": "9 steps", "trainer.gradient_clip_val": 1.0},
    **{"trainer.accelerator": "cpu", "seed_everything": 42},
}


def number(config):
    return int(config.name.split("-")[0])


def thousands(params):
    """As the challenge rounds: to four decimals of a million, as its script reports, and from there to thousands.

    It shows in run 26 alone: 166,464 are 0.1665 million, and those 167 thousand.
    """
    return (round(params / 100) + 5) // 10


@pytest.fixture
def small_corpus(folder, monkeypatch):
    """A small shakespeare.txt in the working folder."""
    monkeypatch.setenv("BYTELM_DATA", str(folder))
    Path("corpus.txt").rename("shakespeare.txt")


def test_there_is_a_config_for_each_run_of_the_challenges_tables():
    assert [number(config) for config in CONFIGS] == list(RUNS)
    assert list(RUNS) == [n for n in range(38) if n not in (19, 36)]


@pytest.mark.parametrize("config", thinned(CONFIGS, 12), ids=lambda config: config.stem)
def test_configs_build_the_reported_models_and_quote_the_reports(small_corpus, config):
    val_bpb, steps, reported, params = RUNS[number(config)]
    cli = build(["--config", str(config)], run=False)
    assert cli.model.gpt.num_params() == params
    assert reported in (None, thousands(params))

    settings = {key.removeprefix("model."): value for key, value in flat(cli.plain_config).items()}
    expected = {**BEST, **SETTINGS[number(config)]}
    keys = {key for differences in (BEST, *SETTINGS.values()) for key in differences}
    assert {key: settings.get(key) for key in keys} == {key: expected.get(key) for key in keys}

    first, *comment = [line for line in config.read_text().splitlines() if line.startswith("#")]
    assert first == f"# python -m bytelm fit --config configs/autoresearch/{config.name}"
    quoted = " ".join(line.removeprefix("# ") for line in comment)
    assert f"val_bpb {val_bpb}" in quoted
    assert steps is None or f" {steps} steps" in quoted
    assert reported is None or f" {reported} thousand parameters" in quoted


def test_configs_differ_from_each_other_and_share_the_budget():
    contents = [merged(config) for config in CONFIGS]
    for i, content in enumerate(contents):
        assert content not in contents[:i], CONFIGS[i].name
        assert content["time_budget"] == {"limit": "180s"}, CONFIGS[i].name


def test_configs_state_their_base_and_only_the_differences():
    whole = []
    for config in CONFIGS:
        content = yaml.safe_load(config.read_text())
        if "base" not in content:
            whole.append(number(config))
        else:
            assert len(config.read_text().splitlines()) <= 12, config.name
    assert whole == [0, 1, 3, 32]
    best, embedding = ((PROJECT / f"configs/autoresearch/{CONFIGS[i].name}").read_text() for i in (-5, -1))
    assert "embedding" not in best
    assert embedding.endswith("base: 32-rope-d80-ff256.yaml\nmodel:\n  gpt: {embedding: ScaledEmbedding}\n")


@pytest.mark.parametrize("n", thinned([0, 9, 12, 37], 2))
def test_a_config_trains(small_corpus, n):
    (config,) = [config for config in CONFIGS if number(config) == n]
    options = ["--time_budget.limit", "2 steps", "--data.batch_size", "2", "--data.eval_bytes", "1024"]
    build(["fit", "--config", str(config), *options])
    record = json.loads(Path("runs", config.stem, "version_0", "record.json").read_text())
    assert (record["status"], record["total_steps"]) == ("completed", 2)
    assert 0 < record["val_bpb"] < 9
