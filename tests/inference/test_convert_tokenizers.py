"""Tokenizers of exported and imported GPT-2s: readers of the export get bytelm's tokens and scores."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thinned import thinned

from bytelm.cli import build
from bytelm.data.tokenizer import ByteTokenizer, load_tokenizer
from bytelm.data.train_tokenizer import train_tokenizer
from bytelm.errors import ConfigError, DataError
from bytelm.inference.convert import export_weights, import_weights
from bytelm.inference.generate import write
from bytelm.inference.load import load
from bytelm.program import main
from bytelm.runs.checkpoints import read

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SIZES = ["--model.gpt.position", "Learned", "--model.gpt.d_ff", "64"]
SIZES += ["--model.gpt.init", "{class_path: Normal, init_args: {std: 0.3}}"]
TEXT = "to be or not to be, that is the question whether nobler\n"


@pytest.fixture
def saved(folder):
    """Makes saved.ckpt, without training, of a network whose tokens are those of a tokenizer."""

    def saved(tokenizer, vocab_size=320):
        options = [*SIZES, f"--model.gpt.vocab_size={vocab_size}"]
        if tokenizer != "bytes":
            Path("tokens").mkdir(exist_ok=True)
            for split in ("train", "val"):
                Path(f"tokens/{split}.bin").write_bytes(bytes([1, 0]) * 1000)
            options += [
                "--data=TokenShards",
                "--data.path=tokens",
                "--data.seq_len=32",
                f"--data.tokenizer={tokenizer}",
            ]
            options += [f"--data.vocab_size={vocab_size}"]
        cli = build(["--config", "tiny.yaml", *options], run=False)
        torch.save({"state_dict": cli.model.state_dict(), "config": cli.plain_config}, "saved.ckpt")
        return cli.model.gpt.eval()

    return saved


@pytest.fixture
def tokenizer_json(folder):
    train_tokenizer(iter([TEXT] * 50), 300, Path("tokenizer.json"))
    return "tokenizer.json"


@pytest.fixture
def meta_pkl(folder):
    characters = sorted(set(TEXT))
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
    meta["stoi"] = {character: number for number, character in meta["itos"].items()}
    Path("meta.pkl").write_bytes(pickle.dumps(meta))
    return "meta.pkl"


@pytest.fixture(params=["bytes", "tokenizer.json", "meta.pkl"])
def tokenizer(request, saved, tokenizer_json, meta_pkl):
    """The name of a tokenizer, with saved.ckpt, a network of its tokens, which is exported to there/."""
    saved(request.param)
    export_weights("saved.ckpt", "there", "huggingface")
    return request.param


def auto_tokenizer(folder="there", **options):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder, **options)


# Hugging Face


def test_transformers_has_the_tokens_of_an_export(tokenizer):
    ours, theirs = load_tokenizer(tokenizer), auto_tokenizer()
    tokens = ours.encode(TEXT)
    assert theirs(TEXT).input_ids == theirs.encode(TEXT) == tokens
    assert theirs.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True) == TEXT
    assert theirs.bos_token_id == theirs.eos_token_id == ours.end_of_text
    assert theirs.model_max_length == 32
    config = json.loads(Path("there/config.json").read_text())
    assert config["bos_token_id"] == config["eos_token_id"] == ours.end_of_text
    assert len(theirs) == ours.vocab_size


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(0, 255)))
def test_transformers_encodes_and_decodes_bytes_as_bytelm_does(exported_bytes, text, tokens):
    ours = ByteTokenizer()
    assert exported_bytes(text).input_ids == ours.encode(text)
    assert exported_bytes.decode(tokens, skip_special_tokens=True) == ours.decode(tokens)


@pytest.fixture(scope="module")
def exported_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "tokenizer.json").write_text(ByteTokenizer().to_json(), encoding="utf-8")
    special = {"bos_token": "\0", "eos_token": "\0", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
    return auto_tokenizer(folder)


def test_a_folder_whose_tokenizer_is_not_known_has_none(saved, tokenizer_json, capsys):
    saved("tokenizer.json")
    export_weights("saved.ckpt", "there", "huggingface")
    assert Path("there/tokenizer.json").exists()
    export_weights("saved.ckpt", "there", "huggingface", tokenizer="none")
    assert {path.name for path in Path("there").iterdir()} == {"config.json", "model.safetensors"}
    assert "the tokenizer is not known, and the folder has none; --tokenizer sets one" in capsys.readouterr().err
    assert json.loads(Path("there/config.json").read_text())["eos_token_id"] is None


def test_a_tokenizer_that_cannot_be_had_is_named_before_anything_is_written(saved, tokenizer_json):
    saved("tokenizer.json")
    Path("tokenizer.json").rename("moved.json")
    for format in ("huggingface", "nanogpt"):
        with pytest.raises(DataError, match=r"'tokenizer\.json' cannot be used; .*No such file"):
            export_weights("saved.ckpt", "there", format)
    assert not Path("there").exists()
    export_weights("saved.ckpt", "there", "huggingface", tokenizer="moved.json")
    assert auto_tokenizer()(TEXT).input_ids == load_tokenizer("moved.json").encode(TEXT)


def test_an_import_takes_the_tokenizer_that_lies_beside_the_weights(tokenizer):
    import_weights("there", "back.ckpt")
    name = read("back.ckpt")["config"]["data"]["init_args"]["tokenizer"]
    if tokenizer == "meta.pkl":  # a tokenizer.json of characters, which bytelm does not read
        assert name is None
        return
    assert name == ("bytes" if tokenizer == "bytes" else str(Path("there/tokenizer.json").absolute()))
    expected, found = load("saved.ckpt"), load("back.ckpt")
    assert found.tokenizer.encode(TEXT) == expected.tokenizer.encode(TEXT)
    assert found.tokenizer.token_bytes.tolist() == expected.tokenizer.token_bytes.tolist()
    assert found.tokenizer.end_of_text == expected.tokenizer.end_of_text


def test_an_import_says_which_tokenizer_it_cannot_use(saved, tokenizer_json, capsys):
    saved("tokenizer.json")
    export_weights("saved.ckpt", "there", "huggingface")
    lower = json.loads(Path("there/tokenizer.json").read_text()) | {"normalizer": {"type": "Lowercase"}}
    Path("there/tokenizer.json").write_text(json.dumps(lower))
    import_weights("there", "back.ckpt")
    note = "there/tokenizer.json is not used: tokenizer: "
    assert note in capsys.readouterr().err
    assert read("back.ckpt")["config"]["data"]["init_args"]["tokenizer"] is None
    train_tokenizer(iter([f"{i:04} {i * 7919 % 9973:04}\n" for i in range(2000)]), 340, Path("there/tokenizer.json"))
    import_weights("there", "back.ckpt")
    assert "the network 320; --tokenizer names another tokenizer" in capsys.readouterr().err


# lm-evaluation-harness, as a user runs it on the export: lm_eval --model hf --model_args pretrained=there


def harness(**options):
    pytest.importorskip("accelerate", reason="which the harness needs for models of Hugging Face's")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained="there", device="cpu", dtype="float32", batch_size=1, **options)


def asked(*args):
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, args, 0)


PAIRS = [
    ("", "to be"),
    ("to be", " or not"),
    ("that is the", " question"),
    ("to be, that is the question to be", " or"),
]


@pytest.mark.parametrize("tokenizer", ["tokenizer.json"], indirect=True)
def test_the_harness_gives_an_export_the_scores_that_it_gives_the_checkpoint(tokenizer):
    evaluate = pytest.importorskip("bytelm.inference.evaluate")
    ours, theirs = evaluate.HarnessModel(load("saved.ckpt")), harness()
    texts = [TEXT, TEXT * 7, "to"]  # up to several rows
    rolling = [asked(text) for text in texts]
    expected = ours.loglikelihood_rolling(rolling)
    assert theirs.loglikelihood_rolling(rolling) == pytest.approx(expected, rel=1e-5)
    assert min(-nats for nats in expected) > 5
    pairs = [asked(*pair) for pair in PAIRS]
    for (nats, greedy), (their_nats, their_greedy) in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True
    ):
        assert (their_nats, their_greedy) == (pytest.approx(nats, rel=1e-5), greedy)


@pytest.mark.parametrize("tokenizer", ["bytes"], indirect=True)
def test_the_harness_gives_an_export_of_bytes_the_scores_of_the_checkpoint(tokenizer):
    """In bytelm every row of bytes begins with the marker: add_bos_token tells the harness to put it before contexts.

    A text of several rows is another matter, as the harness begins its further rows with a byte of the text.
    """
    evaluate = pytest.importorskip("bytelm.inference.evaluate")
    ours = evaluate.HarnessModel(load("saved.ckpt"))
    rolling = [asked(text) for text in ("to be or not", "na\u00efve", TEXT[:31])]
    expected = ours.loglikelihood_rolling(rolling)
    assert harness().loglikelihood_rolling(rolling) == pytest.approx(expected, rel=1e-5)
    pairs = [asked(*pair) for pair in PAIRS[:3]]
    theirs = harness(add_bos_token=True).loglikelihood(pairs)
    for (nats, greedy), (their_nats, their_greedy) in zip(ours.loglikelihood(pairs), theirs, strict=True):
        assert (their_nats, their_greedy) == (pytest.approx(nats, rel=1e-5), greedy)


# nanoGPT


def sample_py(checkpoint):
    """The encoder and decoder that nanoGPT's sample.py makes; None where it takes tokens for GPT-2's."""
    config = torch.load(checkpoint, weights_only=True)["config"]
    path = os.path.join("data", config["dataset"], "meta.pkl")
    if not os.path.exists(path):
        return None
    meta = pickle.loads(Path(path).read_bytes())
    stoi, itos = meta["stoi"], meta["itos"]
    assert len(itos) == meta["vocab_size"]
    return lambda text: [stoi[c] for c in text], lambda tokens: "".join([itos[i] for i in tokens])


@pytest.mark.parametrize("name", ["bytes", "meta.pkl"])
def test_an_export_to_nanogpt_has_the_characters_that_sample_py_needs(name, saved, meta_pkl, tmp_path, monkeypatch):
    saved(name)
    export_weights("saved.ckpt", "out/ckpt.pt", "nanogpt")
    checkpoint = torch.load("out/ckpt.pt", weights_only=True)
    assert checkpoint["model_args"].keys() == {
        *("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
    }
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    encode, decode = sample_py(tmp_path / "out/ckpt.pt")
    tokens = load_tokenizer(str(tmp_path / name) if name == "meta.pkl" else name).encode(TEXT)
    assert encode(TEXT) == tokens
    assert decode(tokens) == TEXT
    assert len(decode(range(320))) > 0  # any token may be drawn


def test_an_export_to_nanogpt_of_gpt2s_tokens_needs_no_characters(saved, capsys):
    saved("bytes")
    export_weights("saved.ckpt", "out/ckpt.pt", "nanogpt", tokenizer="gpt2")
    assert sample_py("out/ckpt.pt") is None
    assert not Path("out/ckpt-data").exists()
    assert capsys.readouterr().err == ""


def test_an_export_to_nanogpt_says_which_tokens_sample_py_does_not_know(saved, tokenizer_json, capsys):
    saved("tokenizer.json")
    export_weights("saved.ckpt", "out/ckpt.pt", "nanogpt")
    assert "its tokenizer is tokenizer.json; sample.py supports GPT-2's tokens, bytes and characters" in (
        capsys.readouterr().err
    )
    export_weights("saved.ckpt", "out/ckpt.pt", "nanogpt", tokenizer="none")
    assert "no tokenizer is known; sample.py supports" in capsys.readouterr().err


@pytest.mark.parametrize("place", thinned(["out", "data/mine", "nanoGPT/data/mine", "/abs"], 2))
def test_an_import_takes_the_meta_pkl_that_nanogpt_would_read(place, saved, meta_pkl, tmp_path):
    saved("meta.pkl")
    export_weights("saved.ckpt", "nanoGPT/out/ckpt.pt", "nanogpt", tokenizer="gpt2")
    path = tmp_path / place.removeprefix("/")
    if place == "out":
        path = tmp_path / "nanoGPT/out"
    path.mkdir(parents=True, exist_ok=True)
    shutil.move("meta.pkl", path / "meta.pkl")
    checkpoint = torch.load("nanoGPT/out/ckpt.pt", weights_only=True)
    checkpoint["config"]["dataset"] = str(path) if place == "/abs" else "mine"
    torch.save(checkpoint, "nanoGPT/out/ckpt.pt")
    import_weights("nanoGPT/out/ckpt.pt", "back.ckpt")
    trained = load("back.ckpt")
    assert trained.tokenizer.name == str(path / "meta.pkl")
    text = "".join(write(trained, "to be", max_new_tokens=5))
    assert text.startswith("to be")
    assert len(text) == len("to be") + 5
    with pytest.raises(ConfigError, match=r"text: 'x' cannot be used; accepted with .* texts of its"):
        next(write(trained, "xx"))


def test_bytes_go_to_nanogpt_and_come_back(saved):
    saved("bytes", 256)
    export_weights("saved.ckpt", "out/ckpt.pt", "nanogpt")
    import_weights("out/ckpt.pt", "back.ckpt")
    assert isinstance(load("back.ckpt").tokenizer, ByteTokenizer)
    expected, found = (list(write(load(name), "na\u00efve", max_new_tokens=20)) for name in ("saved.ckpt", "back.ckpt"))
    assert found == expected


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


def test_a_meta_pkl_that_is_something_else_is_noted_and_runs_nothing(saved, capsys):
    saved("bytes")
    export_weights("saved.ckpt", "out/ckpt.pt", "nanogpt")
    Path("out/ckpt-data/meta.pkl").write_bytes(pickle.dumps({"stoi": Evil()}))
    import_weights("out/ckpt.pt", "back.ckpt")
    assert not Path("ran").exists()
    err = capsys.readouterr().err
    assert "meta.pkl is not used: it holds more than characters and numbers" in err
    assert read("back.ckpt")["config"]["data"]["init_args"]["tokenizer"] is None


def test_the_commands_take_a_tokenizer(saved, tokenizer_json, capsys):
    saved("bytes")
    main(["export", "saved.ckpt", "there", "--format", "huggingface", "--tokenizer", "tokenizer.json"])
    main(["import", "there", "back.ckpt", "--tokenizer", "bytes"])
    assert auto_tokenizer()(TEXT).input_ids == load_tokenizer("tokenizer.json").encode(TEXT)
    assert read("back.ckpt")["config"]["data"]["init_args"]["tokenizer"] == "bytes"
    main(["import", "there", "back.ckpt", "--tokenizer", "none"])
    assert read("back.ckpt")["config"]["data"]["init_args"]["tokenizer"] is None
