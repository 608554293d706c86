"""GPT-2 weights from and to nanoGPT and Hugging Face.

Tested here:

- an imported network gives the logits of its source: of transformers' GPT-2, and of nanoGPT's forward pass, which is
  written out below;
- an imported and exported network has exactly the weights of the source; a network of bytelm gives its logits there;
- a checkpoint that was imported carries its config, and `validate` scores it;
- damaged and foreign sources, and networks that the other side lacks, are rejected in one line that names the fault.
"""

import json
import math
import pickle
import runpy
import shutil
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from thinned import thinned
from torch.nn import functional as F

from bytelm.cli import build
from bytelm.data.train_tokenizer import train_tokenizer
from bytelm.errors import CheckpointError, ConfigError, StorageError
from bytelm.inference.convert import (
    export_weights,
    import_weights,
    main_export,
    main_import,
    read_checkpoint,
    read_huggingface,
    read_nanogpt,
    write_checkpoint,
    write_huggingface,
)
from bytelm.inference.generate import write
from bytelm.inference.load import load
from bytelm.language_model import LanguageModel
from bytelm.program import main
from bytelm.runs.checkpoint_checks import check_compatible
from bytelm.runs.checkpoints import read

N_LAYER, N_HEAD, N_EMBD, BLOCK_SIZE, VOCAB_SIZE = 2, 2, 32, 64, 101
SIZES = {"n_layer": N_LAYER, "n_head": N_HEAD, "n_embd": N_EMBD, "vocab_size": VOCAB_SIZE}
TOKENS = torch.randint(VOCAB_SIZE, (2, BLOCK_SIZE), generator=torch.Generator().manual_seed(1))


def nanogpt(bias=True, prefix="", **args):
    """A checkpoint as nanoGPT writes it, with random weights."""
    args = {**SIZES, "block_size": BLOCK_SIZE, "bias": bias, "dropout": 0.0, **args}
    d = args["n_embd"]
    shapes = {"wte": (args["vocab_size"], d), "wpe": (args["block_size"], d), "ln_f": (d,)}
    for i in range(args["n_layer"]):
        shapes |= {
            f"h.{i}.ln_1": (d,),
            f"h.{i}.attn.c_attn": (3 * d, d),
            f"h.{i}.attn.c_proj": (d, d),
            f"h.{i}.ln_2": (d,),
            f"h.{i}.mlp.c_fc": (4 * d, d),
            f"h.{i}.mlp.c_proj": (d, 4 * d),
        }
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        weights[f"{prefix}transformer.{name}.weight"] = torch.randn(shape, generator=generator) / 4
        if bias and name not in ("wte", "wpe"):
            weights[f"{prefix}transformer.{name}.bias"] = torch.randn(shape[0], generator=generator) / 4
    weights[f"{prefix}lm_head.weight"] = weights[f"{prefix}transformer.wte.weight"]
    rest = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "iter_num": 3, "config": {"dataset": "x"}}
    return {"model": weights, "model_args": args, "best_val_loss": torch.tensor(4.0), **rest}


def nanogpt_logits(checkpoint, tokens):
    """nanoGPT's forward pass."""
    weights = {name.removeprefix("_orig_mod."): tensor for name, tensor in checkpoint["model"].items()}
    args = checkpoint["model_args"]

    def linear(x, name):
        return F.linear(x, weights[f"transformer.{name}.weight"], weights.get(f"transformer.{name}.bias"))

    def norm(x, name):
        gain, bias = weights[f"transformer.{name}.weight"], weights.get(f"transformer.{name}.bias")
        return F.layer_norm(x, x.shape[-1:], gain, bias, 1e-5)

    x = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][: tokens.shape[1]]
    future = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    for i in range(args["n_layer"]):
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").split(args["n_embd"], dim=2)
        q, k, v = (part.unflatten(2, (args["n_head"], -1)).transpose(1, 2) for part in qkv)
        scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(future, -math.inf)
        x = x + linear((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2), f"h.{i}.attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ weights["lm_head.weight"].T


def huggingface(**options):
    """A GPT-2 of transformers with random weights, biases and norms too."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**{**SIZES, "n_positions": BLOCK_SIZE, **options}, attn_implementation="eager")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return model


def from_pretrained(folder):
    return pytest.importorskip("transformers").GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")


@torch.no_grad()
def logits(path):
    """The logits of TOKENS, by the network of a checkpoint of bytelm's."""
    return LanguageModel.load_from_checkpoint(path, weights_only=True).eval()(TOKENS)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with ckpt.pt, a checkpoint of nanoGPT's, and model.ckpt, which was made of it."""
    folder = tmp_path_factory.mktemp("made")
    torch.save(nanogpt(), folder / "ckpt.pt")
    import_weights(str(folder / "ckpt.pt"), str(folder / "model.ckpt"))
    return folder


@pytest.fixture
def there(made, tmp_path, monkeypatch):
    """A working folder with these two."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)


# Import


@pytest.mark.parametrize(
    ("bias", "prefix"),
    thinned([(True, ""), (True, "_orig_mod."), (False, "_orig_mod."), (False, "")], 2, several=True),
)
def test_a_network_of_nanogpt_gives_its_logits_and_goes_back_as_it_was(bias, prefix, tmp_path):
    checkpoint = nanogpt(bias, prefix)
    checkpoint["model"][f"{prefix}transformer.h.0.attn.bias"] = torch.ones(1, 1, BLOCK_SIZE, BLOCK_SIZE).tril()
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    import_weights(str(tmp_path / "ckpt.pt"), str(tmp_path / "model.ckpt"))
    torch.testing.assert_close(
        logits(tmp_path / "model.ckpt"), nanogpt_logits(checkpoint, TOKENS), atol=1e-5, rtol=1e-5
    )
    export_weights(str(tmp_path / "model.ckpt"), str(tmp_path / "back.pt"), "nanogpt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back["model_args"] == checkpoint["model_args"]
    assert_equal(back["model"], nanogpt(bias)["model"])


def test_a_checkpoint_from_before_bias_was_an_option_has_biases(tmp_path):
    checkpoint = nanogpt()
    del checkpoint["model_args"]["bias"]
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    import_weights(str(tmp_path / "ckpt.pt"), str(tmp_path / "model.ckpt"))
    torch.testing.assert_close(
        logits(tmp_path / "model.ckpt"), nanogpt_logits(checkpoint, TOKENS), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    "options",
    thinned(
        [
            {},
            {"activation_function": "gelu"},
            {"activation_function": "gelu_pytorch_tanh", "n_inner": 48},
            {"layer_norm_epsilon": 1e-2},
            {"activation_function": "relu"},
            {"activation_function": "silu"},
            {"activation_function": "swish", "tie_word_embeddings": False},
            {"activation_function": "relu2"},
            {"tie_word_embeddings": False},
        ],
        5,
    ),
    ids=str,
)
def test_a_network_of_hugging_face_gives_its_logits_and_goes_back_as_it_was(options, tmp_path):
    model = huggingface(**options)
    model.save_pretrained(tmp_path / "there")
    import_weights(str(tmp_path / "there"), str(tmp_path / "model.ckpt"))
    with torch.no_grad():
        expected = model(TOKENS).logits
    torch.testing.assert_close(logits(tmp_path / "model.ckpt"), expected, atol=1e-5, rtol=1e-5)
    export_weights(str(tmp_path / "model.ckpt"), str(tmp_path / "back"), "huggingface")
    back = from_pretrained(tmp_path / "back")
    assert_equal(back.state_dict(), model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(back(TOKENS).logits, expected, atol=1e-6, rtol=1e-6)
    import_weights(str(tmp_path / "back"), str(tmp_path / "again.ckpt"))
    first, again = (read(tmp_path / name, map_location="cpu") for name in ("model.ckpt", "again.ckpt"))
    assert first["config"] == again["config"]
    assert_equal(first["state_dict"], again["state_dict"])


def test_a_folder_may_be_in_shards_in_half_precision_or_without_a_prefix(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = huggingface()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    model.transformer.save_pretrained(tmp_path / "bare")
    masks = {f"h.{i}.attn.{name}": torch.ones(1) for i in range(N_LAYER) for name in ("bias", "masked_bias")}
    bare = tmp_path / "bare/model.safetensors"
    safetensors.save_file({**safetensors.load_file(bare), **masks}, bare)  # as older versions have them
    model.half().save_pretrained(tmp_path / "half")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    whole = read_huggingface(tmp_path / "whole").weights
    assert_equal(read_huggingface(tmp_path / "shards").weights, whole)
    assert_equal(read_huggingface(tmp_path / "bare").weights, whole)
    half = read_huggingface(tmp_path / "half").weights
    assert_equal(half, {name: tensor.half().float() for name, tensor in whole.items()})


# Export


def test_nanogpt_networks_without_biases_have_the_same_logits_in_hugging_face(tmp_path):
    checkpoint = nanogpt(bias=False)
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    import_weights(str(tmp_path / "ckpt.pt"), str(tmp_path / "model.ckpt"))
    export_weights(str(tmp_path / "model.ckpt"), str(tmp_path / "there"), "huggingface")
    with torch.no_grad():
        theirs = from_pretrained(tmp_path / "there")(TOKENS).logits
    torch.testing.assert_close(theirs, nanogpt_logits(checkpoint, TOKENS), atol=1e-5, rtol=1e-5)


def test_exported_networks_have_the_same_logits_in_hugging_face(run):
    attention = "{class_path: Explicit, init_args: {n_kv_heads: 2, bias: false, dropout: 0.1}}"
    network = ["--model.gpt.position", "Learned", "--model.gpt.attention", attention, "--model.gpt.dropout", "0.1"]
    network += ["--model.gpt.residual_autocast", "true"]  # of mixed precision, which the weights know nothing of
    network += ["--model.gpt.feedforward.approximate", "polynomial"]  # GELU, but for rounding
    gpt = run(*network).model.gpt.eval()
    export_weights("runs/tiny/version_0/checkpoints/last.ckpt", "there", "huggingface")
    tokens = TOKENS[:, :32]
    with torch.no_grad():
        torch.testing.assert_close(from_pretrained("there")(tokens).logits, gpt(tokens), atol=1e-5, rtol=1e-5)


def test_the_parts_for_hopper_are_gpt2s(run):
    network = ["--model.gpt.position", "Learned", "--model.gpt.attention", "FlashAttention"]
    gpt = run(*network, "--model.gpt.feedforward", "FusedGELU").model.gpt.eval()
    export_weights("runs/tiny/version_0/checkpoints/last.ckpt", "there", "huggingface")
    tokens = TOKENS[:, :32]
    with torch.no_grad():
        torch.testing.assert_close(from_pretrained("there")(tokens).logits, gpt(tokens), atol=1e-5, rtol=1e-5)


@pytest.fixture
def saved(folder):
    """Makes saved.ckpt, without training, of a network with learned positions and further options; returns the GPT."""

    def saved(*options):
        cli = build(["--config", "tiny.yaml", "--model.gpt.position", "Learned", *options], run=False)
        torch.save({"state_dict": cli.model.state_dict(), "config": cli.plain_config}, "saved.ckpt")
        return cli.model.gpt.eval()

    return saved


@pytest.mark.parametrize(
    ("option", "named"),
    thinned(
        [
            (
                "position=Rotary",
                "model.gpt.position: 'bytelm.parts.position.Rotary' cannot be used; it must be "
                "'bytelm.parts.position.Lea",
            ),
            ("block=PostNorm", "model.gpt.block: 'bytelm.parts.block.PostNorm'"),
            ("embedding=ScaledEmbedding", "model.gpt.embedding: 'bytelm.parts.embedding.ScaledEmbedding"),
            ("norm=RMSNorm", "model.gpt.norm: 'bytelm.parts.norm.RMSNorm'"),
            ("norm={class_path: LayerNorm, init_args: {weight: false}}", "model.gpt.norm.weight: False"),
            (
                "feedforward=SwiGLU",
                "model.gpt.feedforward: 'SwiGLU' cannot be used; GPT-2 has no equivalent; ac",
            ),
            ("attention=WindowedSDPA", "model.gpt.attention: 'WindowedSDPA' cannot be used; GPT-2 has no equivalent"),
            (
                "attention={class_path: SDPA, init_args: {n_kv_heads: 1}}",
                "model.gpt.attention.n_kv_heads: 1",
            ),
            ("attention={class_path: SDPA, init_args: {qk_norm: RMSNorm}}", "model.gpt.attention.qk_norm: "),
            ("memory=NGramMemory", "model.gpt.memory: 'bytelm.parts.memory.NGramMemory'"),
            ("head_bias=true", "model.gpt.head_bias: True cannot be used; it must be False in a GPT-2"),
            ("norm_embeddings=true", "model.gpt.norm_embeddings: True"),
            ("logit_softcap=15", "model.gpt.logit_softcap: 15.0"),
        ],
        5,
        several=True,
    ),
)
def test_a_network_that_is_no_gpt2_is_rejected_by_its_key(option, named, saved):
    saved(f"--model.gpt.{option}", "--data.order=folds")  # which a memory needs
    with pytest.raises(ConfigError) as rejected:
        read_checkpoint(Path("saved.ckpt"))
    assert str(rejected.value).startswith(named)


def test_all_options_that_a_gpt2_lacks_are_named_at_once(saved):
    saved("--model.gpt.head_bias=true", "--model.gpt.norm={class_path: LayerNorm, init_args: {weight: false}}")
    with pytest.raises(ConfigError) as rejected:
        read_checkpoint(Path("saved.ckpt"))
    for said in ("model.gpt.norm.weight: False", "model.gpt.head_bias: True"):
        assert said in str(rejected.value)


PARTS = """
from bytelm.parts.attention import SDPA
from bytelm.parts.feedforward import MLP, GELU
from torch.nn import functional as F

class Fast(SDPA):
    gpt2_attention = True

class Cubed(GELU):
    def activation(self, x):
        return x**3

class Own(MLP):
    gpt2_activation = "silu"

    def activation(self, x):
        return F.silu(x)
"""


def test_a_part_of_the_users_that_declares_what_it_equals_is_exported(saved):
    Path("my_parts.py").write_text(PARTS)
    Path("mine.yaml").write_text(
        "model: {gpt: {position: Learned, attention: my_parts.Fast, feedforward: my_parts.Own}}"
    )
    gpt = saved("--config", "mine.yaml")
    main_export(["saved.ckpt", "there", "--format", "huggingface", "--config", "tiny.yaml", "--config", "mine.yaml"])
    tokens = TOKENS[:, :32]
    with torch.no_grad():
        torch.testing.assert_close(from_pretrained("there")(tokens).logits, gpt(tokens), atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match="my_parts"):  # not without the config: its code is not run
        main_export(["saved.ckpt", "again", "--format", "huggingface"])
    checkpoint = Path("run/checkpoints/best.ckpt")
    checkpoint.parent.mkdir(parents=True)
    Path("saved.ckpt").rename(checkpoint)
    Path("run/config.yaml").write_text("base: [../tiny.yaml, ../mine.yaml]")
    main_export(["run", "again", "--format", "huggingface"])  # a run's folder stands for its config, too
    assert Path("again/model.safetensors").read_bytes() == Path("there/model.safetensors").read_bytes()


def test_a_subclass_does_not_inherit_what_its_base_declares(saved):
    Path("my_parts.py").write_text(PARTS)
    Path("mine.yaml").write_text("model: {gpt: {position: Learned, feedforward: my_parts.Cubed}}")
    saved("--config", "mine.yaml")
    with pytest.raises(ConfigError, match=r"model\.gpt\.feedforward: 'Cubed' cannot be used; GPT-2 has no equivalent"):
        read_checkpoint("saved.ckpt", ["tiny.yaml", "mine.yaml"])


@pytest.mark.parametrize(
    ("feedforward", "tied"),
    thinned(product(["GELU", "ReLU", "SiLU", "ReLUSquared", "FusedGELU"], ["true", "false"]), 3, several=True),
)
def test_each_activation_and_head_gives_its_logits_in_hugging_face_and_comes_back(feedforward, tied, saved):
    gpt = saved(f"--model.gpt.feedforward={feedforward}", f"--model.gpt.tie_embeddings={tied}")
    export_weights("saved.ckpt", "there", "huggingface")
    tokens = TOKENS[:, :32]
    with torch.no_grad():
        expected = gpt(tokens)
        torch.testing.assert_close(from_pretrained("there")(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    import_weights("there", "back.ckpt")
    back = LanguageModel.load_from_checkpoint("back.ckpt", weights_only=True).gpt.eval()
    assert back.tie_embeddings == (tied == "true")
    with torch.no_grad():
        torch.testing.assert_close(back(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n_inner": 48, "activation_function": "gelu"}, "model.gpt.d_ff: 48 cannot be used; accepted by nanoGPT: 128"),
        (
            {"activation_function": "gelu_new"},
            "model.gpt.feedforward: 'gelu_new' cannot be used; accepted by",
        ),
        (
            {"activation_function": "gelu", "tie_word_embeddings": False},
            "model.gpt.tie_embeddings: False",
        ),
        ({"layer_norm_epsilon": 1e-6, "activation_function": "gelu"}, "model.gpt.norm.eps: 1e-06 cannot be used"),
    ],
)
def test_parts_that_nanogpt_lacks_are_rejected(options, named, tmp_path):
    huggingface(**options).save_pretrained(tmp_path / "there")
    import_weights(str(tmp_path / "there"), str(tmp_path / "model.ckpt"))
    with pytest.raises(ConfigError) as rejected:
        export_weights(str(tmp_path / "model.ckpt"), str(tmp_path / "back.pt"), "nanogpt")
    assert str(rejected.value).startswith(named)


def test_biases_in_some_layers_only_are_rejected_by_nanogpt_alone(there):
    gpt2 = read_nanogpt(Path("ckpt.pt"))
    weights = {name: tensor for name, tensor in gpt2.weights.items() if not name.endswith("norm.bias")}
    write_checkpoint(replace(gpt2, norm_bias=False, weights=weights), Path("model.ckpt"))
    with pytest.raises(ConfigError, match=r"model\.gpt\.norm\.bias: False .* True, as attention\.bias is True"):
        export_weights("model.ckpt", "back.pt", "nanogpt")
    export_weights("model.ckpt", "folder", "huggingface")
    back = read_huggingface(Path("folder")).weights
    assert_equal(back, {name: tensor if name in weights else 0 * tensor for name, tensor in gpt2.weights.items()})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.pop("config"), "does not say what network it is of"),
        (lambda c: c["config"]["model"]["gpt"]["init_args"].update(d_model="wide"), "d_model"),
        (lambda c: c["state_dict"].pop("gpt.norm.bias"), "gpt.norm.bias: absent in the checkpoint"),
        (lambda c: c["state_dict"].update({"gpt.more": torch.ones(1)}), "gpt.more: (1,) in the checkpoint, absent now"),
    ],
)
def test_a_checkpoint_that_does_not_agree_with_itself_is_rejected(change, named, there):
    checkpoint = read("model.ckpt", map_location="cpu")
    change(checkpoint)
    torch.save(checkpoint, "other.ckpt")
    with pytest.raises(CheckpointError) as rejected:
        read_checkpoint(Path("other.ckpt"))
    assert str(rejected.value).startswith("ckpt_path: 'other.ckpt'")
    assert named in str(rejected.value)


@pytest.mark.parametrize("format", ["nanogpt", "huggingface"])
def test_a_target_that_cannot_be_written_is_named(format, there):
    Path("file").write_text("as it was")
    with pytest.raises(StorageError, match=r"file"):
        export_weights("model.ckpt", "file/model" if format == "nanogpt" else "file", format)
    assert Path("file").read_text() == "as it was"


def test_a_folder_of_which_the_writing_fails_is_as_it_was(there, monkeypatch):
    gpt2 = read_checkpoint(Path("model.ckpt"))
    write_huggingface(gpt2, Path("there"))
    before = {path.name: path.read_bytes() for path in Path("there").iterdir()}
    assert before.keys() == {"config.json", "model.safetensors"}  # and no tokenizer, which is not known
    assert len({path.stat().st_mode for path in Path("there").iterdir()}) == 1

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(StorageError, match=r"there: the model could not be written .No space left on device"):
        write_huggingface(gpt2, Path("there"))
    assert {path.name: path.read_bytes() for path in Path("there").iterdir()} == before


# Sources that are none


def lacks(name):
    return lambda checkpoint: checkpoint["model"].pop(name)


def has(**args):
    return lambda checkpoint: checkpoint["model_args"].update(args)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.pop("model_args"), "lacks model_args or model"),
        (lambda c: c.update(model=None), "lacks model_args or model"),
        (lacks("transformer.h.1.mlp.c_fc.bias"), "lacks transformer.h.1.mlp.c_fc.bias"),
        (lacks("transformer.wpe.weight"), "lacks transformer.wpe.weight"),
        (has(n_layer=10**12), "lacks transformer.h.2.ln_1.weight"),
        (has(n_layer=1), "transformer.h.1.attn.c_attn.bias is unknown in a GPT-2"),
        (has(bias=False), ".bias is unknown in a GPT-2"),
        (has(n_layer=0), "n_layer: 0 cannot be used; accepted: a whole number above 0"),
        (has(n_embd=32.0), "n_embd: 32.0 cannot be used"),
        (lambda c: c["model_args"].pop("block_size"), "block_size: None cannot be used"),
        (has(n_head=3), "3 heads do not divide the width, which is 32"),
        (
            has(vocab_size=50304),
            "wte.weight has the shape (101, 32), and its config needs (50304, 32)",
        ),
        (
            lambda c: c["model"].update({"lm_head.weight": torch.ones(101, 32)}),
            "lm_head.weight differs from the token embedding",
        ),
        (lambda c: c["model"].update({"transformer.wpe.weight": 1}), "lacks transformer.wpe.weight"),
    ],
)
def test_a_checkpoint_that_is_not_nanogpts_is_rejected(change, named, tmp_path):
    checkpoint = nanogpt()
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError) as rejected:
        import_weights(str(tmp_path / "ckpt.pt"), str(tmp_path / "model.ckpt"))
    assert str(rejected.value).startswith(str(tmp_path / "ckpt.pt"))
    assert named in str(rejected.value)
    assert len(str(rejected.value).splitlines()) == 1
    assert not (tmp_path / "model.ckpt").exists()


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


def test_a_file_that_is_damaged_or_unsafe_is_rejected(there):
    whole = Path("ckpt.pt").read_bytes()
    at = whole.index(nanogpt()["model"]["transformer.h.1.mlp.c_fc.weight"].numpy().tobytes())
    Path("flipped.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    Path("empty.pt").touch()
    Path("plain.pickle").write_bytes(pickle.dumps({"model": {}, "model_args": {}}))
    torch.save({**nanogpt(), "more": Evil()}, "evil.pt")
    torch.save([1, 2], "list.pt")
    for name in ("flipped.pt", "cut.pt", "empty.pt", "plain.pickle", "evil.pt", "list.pt", "none.pt", "model.ckpt"):
        with pytest.raises(CheckpointError) as rejected:
            import_weights(name, "target.ckpt")
        assert str(rejected.value).startswith(f"{name} ")
        assert str(rejected.value).endswith("accepted: nanoGPT's ckpt.pt, or a Hugging Face folder")
    assert not Path("ran").exists()
    assert not Path("target.ckpt").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    thinned(
        [
            ("model_type", "llama"),
            ("activation_function", "quick_gelu"),
            ("activation_function", ["gelu"]),
            ("tie_word_embeddings", "yes"),
            ("scale_attn_weights", False),
            ("scale_attn_by_inverse_layer_idx", True),
            ("add_cross_attention", True),
            ("n_embd", None),
            ("n_inner", -1),
            ("n_positions", "64"),
            ("layer_norm_epsilon", None),
            ("layer_norm_epsilon", "1e-5"),
        ],
        6,
        several=True,
    ),
)
def test_a_config_of_hugging_face_that_bytelm_cannot_follow_is_rejected(key, value, there):
    export_weights("model.ckpt", "folder", "huggingface")
    path = Path("folder/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError) as rejected:
        import_weights("folder", "target.ckpt")
    assert str(rejected.value).startswith(f"{path}: {key}: {value!r} cannot be used; accepted: ")


def test_a_folder_that_lacks_something_is_rejected(there):
    export_weights("model.ckpt", "folder", "huggingface")
    folder = Path("folder")
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, said = weights.read_bytes(), config.read_text()

    def rejection():
        with pytest.raises(CheckpointError) as rejected:
            import_weights("folder", "target.ckpt")
        assert len(str(rejected.value).splitlines()) == 1
        return str(rejected.value)

    weights.write_bytes(whole[:-100])
    assert rejection().startswith(f"{weights} cannot be read (")
    weights.unlink()
    assert rejection().startswith(f"{weights} cannot be read (")
    index = folder / "model.safetensors.index.json"
    index.write_text("{}")
    assert rejection() == f"{index} lacks weight_map, the file of each tensor"
    index.write_text('{"weight_map": {"a": []}}')
    assert rejection() == f"{index} lacks weight_map, the file of each tensor"
    index.write_text("[" * 100_000)
    assert rejection().startswith(f"{index} cannot be read (")
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert rejection().startswith(f"{folder / 'model-00001-of-00002.safetensors'} cannot be read (")
    index.unlink()
    weights.write_bytes(whole)
    config.write_text(said.replace('"n_layer": 2', '"n_layer": 3'))
    assert rejection() == "folder lacks transformer.h.2.ln_1.weight"
    config.write_text("[]")
    assert rejection().startswith(f"{config} cannot be read (it is not an object with keys); accepted: a folder with")
    config.unlink()
    assert rejection().startswith(f"{config} cannot be read (No such file or directory)")


def test_a_missing_package_is_named(there, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ConfigError, match=r"safetensors is not installed; run pip install"):
        export_weights("model.ckpt", "folder", "huggingface")
    assert not Path("folder").exists()


# The checkpoint, and the commands


@pytest.mark.parametrize(
    ("vocab_size", "given", "tokenizer", "tokens"),
    [
        (101, None, None, 101),
        (50_257, None, "gpt2", 50_257),
        (50_304, None, "gpt2", 50_257),
        (101, "tokenizer.json", "tokenizer.json", 101),
    ],
)
def test_the_config_names_the_tokenizer(vocab_size, given, tokenizer, tokens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(nanogpt(vocab_size=vocab_size, n_embd=4), "ckpt.pt")
    import_weights("ckpt.pt", "model.ckpt", given)
    assert read("model.ckpt")["config"]["data"] == {
        "class_path": "bytelm.data.shards.TokenShards",
        "init_args": {"tokenizer": tokenizer, "vocab_size": tokens, "seq_len": BLOCK_SIZE},
    }


def test_of_other_vocabularies_the_tokenizer_has_to_be_named(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    train_tokenizer(iter(["to be or not to be"] * 9), 270, Path("tokenizer.json"))
    torch.save(nanogpt(vocab_size=300), "ckpt.pt")
    import_weights("ckpt.pt", "model.ckpt")
    with pytest.raises(ConfigError, match=r"data\.tokenizer: None .* given to import \(--tokenizer\)"):
        load("model.ckpt")
    import_weights("ckpt.pt", "model.ckpt", "tokenizer.json")
    text = "".join(write(load("model.ckpt"), "to be", max_new_tokens=5))
    assert text.startswith("to be")
    assert len(text) > len("to be")


def test_a_model_of_the_config_takes_the_weights_on(there):
    checkpoint = read("model.ckpt", map_location="cpu")
    model = LanguageModel.load_from_checkpoint("model.ckpt", weights_only=True)
    assert check_compatible("model.ckpt", checkpoint, model, checkpoint["config"]) == []
    assert model.gpt.head.weight is model.gpt.embedding.weight
    assert (model.gpt.max_seq_len, model.gpt.vocab_size) == (BLOCK_SIZE, VOCAB_SIZE)


VALIDATE = """
model:
  gpt:
    d_model: 32
    n_heads: 2
    n_layers: 2
    vocab_size: 101
    max_seq_len: 64
    position: Learned
data:
  class_path: TokenShards
  init_args: {path: shards, batch_size: 3, seq_len: 64, vocab_size: 101, tokenizer: null}
trainer: {accelerator: cpu, devices: 1, enable_progress_bar: false}
"""


def test_validate_scores_an_imported_checkpoint(there, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bytelm"])
    shard_file = pytest.importorskip("bytelm.data.shard_file")
    Path("shards").mkdir()
    text = torch.randint(VOCAB_SIZE, (64 * 5 + 1,), generator=torch.Generator().manual_seed(2))
    for split in ("train", "val"):
        shard_file.write_shard(Path(f"shards/{split}.bin"), text.numpy().astype("uint16"))
    Path("imported.yaml").write_text(VALIDATE)
    main(["validate", "--config", "imported.yaml", "--ckpt_path", "model.ckpt"])
    captured = capsys.readouterr()
    rows, targets = text[:-1].view(5, 64), text[1:].view(5, 64)
    loss = F.cross_entropy(nanogpt_logits(nanogpt(), rows).flatten(0, 1), targets.flatten()).item()
    (line,) = [line for line in captured.out.splitlines() if line.startswith("val_loss:")]
    assert float(line.split()[1]) == pytest.approx(loss, abs=1e-4)
    assert "model.gpt" not in captured.err  # no differences to tell of


def test_the_commands_report_their_files_and_reject_in_one_line(there, capsys):
    main_export(["model.ckpt", "folder", "--format", "huggingface"])
    main_import(["folder", "again.ckpt", "--tokenizer", "gpt2"])
    assert capsys.readouterr().out.splitlines() == ["huggingface: folder", "checkpoint: again.ckpt"]
    for options, status in (
        (["import", "none.pt", "model.ckpt"], 4),
        (["import", "ckpt.pt"], 2),
        (["export", "model.ckpt", "folder"], 2),
        (["export", "model.ckpt", "folder", "--format", "onnx"], 2),
        (["export", "ckpt.pt", "folder", "--format", "nanogpt"], 4),
    ):
        with pytest.raises(SystemExit) as ended:
            main(options)
        assert ended.value.code == status
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("bytelm: error: ")


@pytest.mark.parametrize(("name", "command"), [("import", main_import), ("export", main_export)])
def test_the_commands_list_their_options(name, command, capsys):
    with pytest.raises(SystemExit) as ended:
        command(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m bytelm {name} ")
    assert "(required, type: str)" not in said


def test_the_program_knows_the_commands(there, monkeypatch):
    for options in (["import", "ckpt.pt", "cli.ckpt"], ["export", "cli.ckpt", "cli.pt", "--format", "nanogpt"]):
        monkeypatch.setattr("sys.argv", ["bytelm", *options])
        runpy.run_module("bytelm", run_name="__main__")
    assert_equal(torch.load("cli.pt", weights_only=True)["model"], nanogpt()["model"])
