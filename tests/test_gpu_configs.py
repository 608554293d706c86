"""configs/gpu/autoresearch.yaml is autoresearch's network and optimizer: by formulas, and beside the original."""

import math
from pathlib import Path

import autoresearch_original as original
import pytest
import torch
from jsonargparse import ArgumentParser
from packed_documents import write_cache

from bytelm.budget import Progress
from bytelm.cli import build
from bytelm.errors import CheckpointError
from bytelm.inference.convert.autoresearch import from_autoresearch
from bytelm.language_model import LanguageModel
from bytelm.optim import muon, newton_schulz
from configs import merged, over

CONFIG = Path(__file__).resolve().parents[1] / "configs/gpu/autoresearch.yaml"
T, D, HEADS, LAYERS, VOCAB = 24, 64, 2, 6, 96
SIZES = {"d_model": D, "n_heads": HEADS, "n_layers": LAYERS, "vocab_size": VOCAB, "max_seq_len": T}


def full_size(file):
    """The LanguageModel of a config, without memory for its weights."""
    parser = ArgumentParser()
    parser.add_class_arguments(LanguageModel, "model")
    with torch.device("meta"):
        return parser.instantiate(parser.parse_object({"model": merged(CONFIG.parent / file)["model"]})).model


def model(device="cpu", **attention):
    """The config's LanguageModel in small, with windows of half the length."""
    small = {**SIZES, "attention": {"init_args": {"window": T // 2 + 1, **attention}}}
    config = (
        over(merged(CONFIG)["model"], {"gpt": small, "compile": False}) if device == "cpu" else merged(CONFIG)["model"]
    )
    parser = ArgumentParser()
    parser.add_class_arguments(LanguageModel, "model")
    torch.manual_seed(0)
    with torch.device(device):
        return parser.instantiate(parser.parse_object({"model": config})).model


def batch():
    tokens = torch.randint(VOCAB, (3, T + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def weights(n_kv_heads=HEADS):
    """Random weights of the original, in float32, by its names."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape, std=1.0):
        return std * torch.randn(*shape, generator=generator)

    found = {"transformer.wte.weight": draw(VOCAB, D), "lm_head.weight": draw(VOCAB, D, std=0.1)}
    found |= {"resid_lambdas": 1 + draw(LAYERS, std=0.2), "x0_lambdas": draw(LAYERS, std=0.3)}
    value_dim = n_kv_heads * D // HEADS
    for layer in range(LAYERS):
        shapes = {"attn.c_q": (D, D), "attn.c_k": (value_dim, D), "attn.c_v": (value_dim, D), "attn.c_proj": (D, D)}
        shapes |= {"mlp.c_fc": (4 * D, D), "mlp.c_proj": (D, 4 * D)}
        if layer in (1, 3, 5):
            found[f"value_embeds.{layer}.weight"] = draw(VOCAB, value_dim)
            shapes["attn.ve_gate"] = (n_kv_heads, 32)
        for name, shape in shapes.items():
            found[f"transformer.h.{layer}.{name}.weight"] = draw(*shape, std=shape[1] ** -0.5)
    return found


def logits_by_formulas(w, tokens, n_kv_heads=HEADS):
    """The network written out, with one query, one head and one row at a time where that is clearer."""

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    size = D // HEADS
    angles = torch.arange(T)[:, None] / 10_000.0 ** (torch.arange(0, size, 2) / size)
    cos, sin = angles.cos().bfloat16().float(), angles.sin().bfloat16().float()

    def turn(x):  # clockwise
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * cos + b * sin, b * cos - a * sin], -1)

    first = x = norm(w["transformer.wte.weight"][tokens])
    for layer in range(LAYERS):
        of = {name: w.get(f"transformer.h.{layer}.{name}.weight") for name in ("attn.ve_gate", "attn.c_proj")}
        q, k, v = (w[f"transformer.h.{layer}.attn.c_{letter}.weight"] for letter in "qkv")
        x = w["resid_lambdas"][layer] * x + w["x0_lambdas"][layer] * first
        h = norm(x)
        q, k, v = ((h @ m.T).unflatten(-1, (-1, size)).transpose(1, 2) for m in (q, k, v))
        if of["attn.ve_gate"] is not None:
            gates = 2 / (1 + torch.exp(-h[..., :32] @ of["attn.ve_gate"].T))  # (B, T, heads)
            table = w[f"value_embeds.{layer}.weight"][tokens].unflatten(-1, (n_kv_heads, size))
            v = v + (gates[..., None] * table).transpose(1, 2)
        q, k = norm(turn(q)), norm(turn(k))
        left = T if layer in (3, LAYERS - 1) else T // 2  # S S S L S S, and the last is full
        mixed = torch.zeros_like(q)
        for head in range(HEADS):
            shared = head * n_kv_heads // HEADS
            for t in range(T):
                seen = slice(max(t - left, 0), t + 1)
                scores = (q[:, head, t, None] @ k[:, shared, seen].mT) / math.sqrt(size)
                mixed[:, head, t] = (scores.softmax(-1) @ v[:, shared, seen])[:, 0]
        x = x + mixed.transpose(1, 2).flatten(2) @ of["attn.c_proj"].T
        up, down = (w[f"transformer.h.{layer}.mlp.{name}.weight"] for name in ("c_fc", "c_proj"))
        x = x + (norm(x) @ up.T).clamp(min=0).square() @ down.T
    return 15 * torch.tanh(norm(x) @ w["lm_head.weight"].T / 15)


@pytest.mark.parametrize("n_kv_heads", [1, 2])
@torch.no_grad()
def test_logits_and_loss_are_the_formulas(n_kv_heads):
    ours, (inputs, targets) = model(n_kv_heads=n_kv_heads).float(), batch()
    w = weights(n_kv_heads)
    ours.gpt.load_state_dict(from_autoresearch(w, HEADS, n_kv_heads))
    logits = logits_by_formulas(w, inputs, n_kv_heads)
    assert logits.std() > 0.7
    torch.testing.assert_close(ours(inputs), logits, atol=1e-5, rtol=0)
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(ours.training_step((inputs, targets), 0), expected, atol=1e-6, rtol=0)


def test_incomplete_weights_are_rejected():
    w = weights()
    del w["transformer.h.2.attn.c_k.weight"]
    with pytest.raises(CheckpointError, match=r"the weights lack transformer\.h\.2\.attn\.c_k\.weight"):
        from_autoresearch(w, HEADS)


def test_initial_weights():
    gpt = model().gpt
    uniform = math.sqrt(3 / D)
    assert gpt.embedding.weight.dtype == torch.bfloat16
    assert gpt.embedding.weight.float().std().item() == pytest.approx(1, rel=0.05)
    assert gpt.head.weight.std().item() == pytest.approx(0.001, rel=0.05)
    tables = [block.attention.value_table for block in gpt.blocks]
    assert [table is not None for table in tables] == [False, True] * 3
    for table in (table.weight for table in tables if table is not None):
        assert table.dtype == torch.bfloat16
        assert 0.98 * uniform < table.abs().max() <= 1.01 * uniform
    for block in gpt.blocks:
        assert (block.stream.item(), block.first.item()) == (1, pytest.approx(0.1))
        for weight in (block.attention.qkv.weight, block.feedforward.up.weight):
            assert 0.98 * uniform < weight.abs().max() <= uniform
            assert weight.std().item() == pytest.approx(1 / math.sqrt(D), rel=0.05)
        assert not any(layer.weight.any() for layer in (block.attention.out, block.feedforward.down))
        assert block.attention.gate is None or not block.attention.gate.weight.any()


def test_the_optimizer_has_the_originals_groups_and_rates():
    ours = model()
    scale = (512 / 768) ** -0.5
    groups = {group["name"]: group for group in ours.configure_optimizers().param_groups}
    rates = {"hidden": 0.04, "embedding": 0.6 * scale, "head": 0.004 * scale, "value_embedding": 0.6 * scale}
    rates |= {"stream_scalar": 0.005, "first_scalar": 0.5}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(rates, rel=1e-6)
    for name in rates.keys() - {"hidden"}:
        assert groups[name]["betas"] == (0.96 if name == "first_scalar" else 0.8, 0.95)
        assert (groups[name]["eps"], groups[name]["weight_decay"]) == (1e-10, 0)
    hidden = {id(p) for p in groups["hidden"]["params"]}
    matrices = [p for block in ours.gpt.blocks for p in block.parameters() if p.ndim == 2]
    tables = {id(p) for p in groups["value_embedding"]["params"]}
    assert hidden | tables == {id(p) for p in matrices}
    assert len(tables) == 3


def test_full_size():
    gpt = model("meta").gpt
    assert gpt.num_params() == 2 * 8192 * 512 + 4 * 8192 * 512 + 8 * 12 * 512**2 + 4 * 4 * 32 + 2 * 8
    # The original counts the 1,024 tokens before a query, and leaves out the scalars.
    n = gpt.num_params() - 5 * 8192 * 512 - 2 * 8
    assert gpt.flops_per_token(2048) == 6 * (n + 2 * 8) + 12 * 512 * (2 * 2048 + 6 * 1025)


def test_schedules_of_the_config(parser):
    config = parser.parse_args(["--config", str(CONFIG)])
    made = parser.instantiate(config)
    at = lambda steps, share: Progress(share, {"steps": steps}, {})  # noqa: E731
    momentum, decay = made["schedules"]["momentum.hidden"], made["schedules"]["weight_decay.hidden"]
    for step in (0, 1, 150, 299, 300, 1000):
        share = min(step / 300, 1)
        assert momentum.value(0.95, at(step, 0.3)) == pytest.approx(0.85 * (1 - share) + 0.95 * share)
    for share in (0, 0.25, 0.5, 0.75, 1):
        assert decay.value(0.2, at(0, share)) == pytest.approx(0.2 * (1 - share))
        assert made["lr_schedule"].value(1, at(0, share)) == pytest.approx(min(1, (1 - share) / 0.5))


def test_the_config_trains(folder):
    write_cache("cache")
    options = [f"--model.gpt.{name}={size}" for name, size in {**SIZES, "vocab_size": 320}.items()]
    options += ["--model.gpt.attention.window=13", "--model.compile=false", "--trainer.accelerator=cpu"]
    options += ["--data.path=cache", "--data.tokenizer=cache/tokenizer", "--data.batch_size=2"]
    options += ["--data.seq_len=24", "--data.eval_tokens=96", "--time_budget.limit=3 steps"]
    cli = build(["fit", "--config", str(CONFIG), *options])
    (optimizer,) = cli.trainer.optimizers
    table = cli.model.gpt.embedding.weight
    assert optimizer.state[table]["exp_avg"].dtype == table.dtype == torch.bfloat16
    assert all(p.isfinite().all() for p in cli.model.parameters())
    assert cli.model.gpt.blocks[1].attention.gate.weight.any()
    hidden = next(group for group in optimizer.param_groups if group["name"] == "hidden")
    assert hidden["momentum"] == pytest.approx(0.85 + 0.1 * 2 / 300)
    assert hidden["weight_decay"] == pytest.approx(0.2 * (1 - 2 / 3))


# Beside the original


@pytest.fixture(scope="module")
def theirs():
    """The original's module train.py, and a small GPT of it with its own initialisation."""
    module = original.training()
    config = module.GPTConfig(
        sequence_len=T, vocab_size=VOCAB, n_layer=LAYERS, n_head=HEADS, n_kv_head=HEADS, n_embd=D, window_pattern="SSSL"
    )
    torch.manual_seed(3)
    gpt = module.GPT(config)
    gpt.init_weights()
    return module, gpt


@original.needs_clone
def test_logits_loss_and_flops_are_the_originals(theirs):
    module, gpt = theirs
    gpt = module.GPT(gpt.config)
    gpt.init_weights()
    gpt.float()
    w = weights()
    gpt.load_state_dict(w)
    ours, (inputs, targets) = model().float(), batch()
    ours.gpt.load_state_dict(from_autoresearch(gpt.state_dict(), HEADS))
    logits = gpt(inputs)
    losses = [gpt(inputs, targets), ours.training_step((inputs, targets), 0)]
    torch.testing.assert_close(ours(inputs), logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits_by_formulas(w, inputs), logits, atol=1e-5, rtol=0)
    windowed = sum(block.attention.is_windowed for block in ours.gpt.blocks)
    assert ours.gpt.flops_per_token(T) == gpt.estimate_flops() + 6 * 2 * LAYERS + 12 * D * windowed


@original.needs_clone
def test_initial_weights_have_the_originals_types_and_sizes(theirs):
    _, gpt = theirs
    found, ours = from_autoresearch(gpt.state_dict(), HEADS), model().gpt.state_dict()
    assert {name: (w.shape, w.dtype) for name, w in found.items()} == {n: (w.shape, w.dtype) for n, w in ours.items()}
    for name, weight in ours.items():
        spreads = [one.float().std(correction=0).item() for one in (weight, found[name])]
        assert spreads[0] == pytest.approx(spreads[1], rel=0.1), name


@original.needs_clone
def test_steps_are_the_originals(theirs, monkeypatch):
    """Ten steps on equal gradients, in float32 and with the original's coefficients of Polar Express in both."""
    module, gpt = theirs
    ours, start = model().float(), from_autoresearch(weights(), HEADS)
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor)  # how the original begins to orthogonalise
    monkeypatch.setattr(muon, "PRECISION", torch.float32)
    monkeypatch.setitem(newton_schulz.COEFFICIENTS, "polar_express", tuple(module.polar_express_coeffs))
    monkeypatch.setattr(newton_schulz, "SAFETY", 1.02)
    gpt = module.GPT(gpt.config).float()
    gpt.load_state_dict(weights())
    ours.gpt.load_state_dict(start)
    optimizer = ours.configure_optimizers()
    # The config's rates are those of 512 dimensions.
    scale = (D / 512) ** 0.5
    theirs = gpt.setup_optimizer(0.004 * scale, 0.6 * scale, 0.04, 0.2, (0.8, 0.95), 0.5)
    generator = torch.Generator().manual_seed(4)
    for _ in range(10):
        for param in gpt.parameters():
            param.grad = torch.randn(param.shape, generator=generator)
        gradients = from_autoresearch({name: param.grad for name, param in gpt.named_parameters()}, HEADS)
        for name, param in ours.gpt.named_parameters():
            param.grad = gradients[name]
        theirs.step()
        optimizer.step()
    expected = from_autoresearch(gpt.state_dict(), HEADS)
    for name, weight in ours.gpt.state_dict().items():
        moved, apart = ((one - expected[name]).norm() for one in (start[name], weight))
        assert apart < 1e-3 * moved, name  # rounding decides whether weights near zero decay


def test_the_minute_is_a_network_of_the_same_width_and_depth_with_an_optimizer_for_each_group():
    minute, baseline = full_size("minute.yaml"), full_size("autoresearch.yaml")
    tables = [block.attention.value_table for block in baseline.gpt.blocks if block.attention.value_table is not None]
    gates = 8 * 4 * 16
    gates_of_tables = len(tables) * 4 * 32
    without_tables = baseline.gpt.num_params() - sum(table.weight.numel() for table in tables) - gates_of_tables
    assert minute.gpt.num_params() == without_tables + gates == 33_554_960
    groups = [group["name"] for group in minute.configure_optimizers().param_groups]
    assert set(groups) == {"hidden", "embedding", "head", "gate", "stream_scalar", "first_scalar"}
    config, longer = merged(CONFIG.parent / "minute.yaml"), merged(CONFIG.parent / "five-minutes.yaml")
    for each in (config, longer):
        assert each["data"]["init_args"]["batch_size"] * each["data"]["init_args"]["seq_len"] == 2**16
    changed = {"d_model": 768, "n_heads": 6, "n_layers": 10, "dropout": 0.1}
    assert longer["model"]["gpt"] == config["model"]["gpt"] | changed
    assert [each["time_budget"]["limit"] for each in (config, longer)] == ["60s", "5m"]
