"""Trained models: loading gives the trained network, needs no corpus, and runs no untrusted code."""

import copy
import random
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from thinned import thinned

from bytelm.cli import build
from bytelm.data.tokenizer import ByteTokenizer
from bytelm.errors import CheckpointError, ConfigError
from bytelm.inference import load as trained

CHECKPOINT = Path("runs/tiny/version_0/checkpoints/last.ckpt")
CONFIG = Path("runs/tiny/version_0/config.yaml")
KEPT: dict[Path, bytes] = {}
EVIL = "import pathlib\npathlib.Path('ran').touch()\nfrom bytelm.parts.position import Rotary as Evil\n"


@pytest.fixture
def fitted(run):
    """A run's checkpoint and config.yaml in the test's own folder; it is trained once."""
    if not KEPT:
        run()
        KEPT.update({path: path.read_bytes() for path in (CHECKPOINT, CONFIG)})
    for path, content in KEPT.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def saved(folder):
    """Makes a checkpoint, without training, of a network with further options; returns the network."""

    def saved(*options):
        cli = build(["--config", "tiny.yaml", *options], run=False)
        torch.save({"state_dict": cli.model.state_dict(), "config": cli.plain_config}, "saved.ckpt")
        return cli.model.gpt.eval()

    return saved


@pytest.fixture
def altered(fitted):
    """A trained checkpoint whose config is changed by a function; returns its path."""

    def altered(change):
        checkpoint = torch.load(CHECKPOINT, weights_only=True)
        change(checkpoint["config"])
        torch.save(checkpoint, "altered.ckpt")
        return "altered.ckpt"

    return altered


def rows():
    tokens = torch.randint(1, 256, (3, 32), generator=torch.Generator().manual_seed(0))
    return tokens.index_fill_(1, torch.tensor(0), 0)


def test_a_run_leaves_all_that_it_takes(run):
    gpt = run("--model.gpt.memory", "NGramMemory", "--data.order", "folds").model.gpt.eval()
    gpt.memory.hold_out(None)
    Path("corpus.txt").unlink()
    found = trained.load(CHECKPOINT)
    assert not found.gpt.training
    assert not any(p.requires_grad for p in found.gpt.parameters())
    assert torch.equal(found.gpt(rows()), gpt(rows()))
    assert isinstance(found.tokenizer, ByteTokenizer)


@pytest.mark.parametrize(
    "options",
    [
        [
            "--model.gpt.position",
            "ALiBi",
            "--model.gpt.attention.n_kv_heads",
            "1",
            "--model.gpt.tie_embeddings",
            "false",
        ],
        ["--model.gpt.embedding", "ValueEmbedding", "--model.gpt.block", "Parallel", "--model.gpt.logit_softcap", "5"],
        ["--model.gpt.d_model", "24", "--model.gpt.norm", "RMSNorm", "--model.loss.label_smoothing", "0.1"],
    ],
)
def test_the_network_is_that_of_the_config_in_the_checkpoint(saved, options):
    gpt = saved(*options)
    assert torch.equal(trained.load("saved.ckpt").gpt(rows()), gpt(rows()))


@pytest.mark.parametrize("config", ["tiny.yaml", "runs/tiny/version_0/config.yaml"])
def test_a_config_may_be_given_in_place_of_the_checkpoints_own(fitted, config):
    expected = trained.load(CHECKPOINT).gpt(rows())
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    torch.save({"state_dict": checkpoint["state_dict"]}, "weights.ckpt")
    with pytest.raises(CheckpointError, match=r"weights\.ckpt.*config"):
        trained.load("weights.ckpt")
    found = trained.load("weights.ckpt", [config])
    assert torch.equal(found.gpt(rows()), expected)
    assert isinstance(found.tokenizer, ByteTokenizer)


def test_later_configs_win_and_may_write_keys_with_dots(saved):
    Path("wide.yaml").write_text("model.gpt: {d_model: 24}\nmodel.optimizer.lr: 1e-3\ntrainer.callbacks: []\n")
    Path("norm.yaml").write_text("model:\n  gpt:\n    norm: RMSNorm\n")
    gpt = saved("--config", "wide.yaml", "--config", "norm.yaml")
    found = trained.load("saved.ckpt", ["tiny.yaml", "wide.yaml", "norm.yaml"])
    assert torch.equal(found.gpt(rows()), gpt(rows()))


def test_a_config_may_replace_classes_of_its_base(saved):
    training = "optimizer: {class_path: Muon, init_args: {lr: 0.1}}, loss: CrossEntropy"
    Path("other.yaml").write_text(f"base: tiny.yaml\nmodel: {{{training}}}\nlr_schedule: Cosine\n")
    gpt = saved()
    assert torch.equal(trained.load("saved.ckpt", ["other.yaml", "other.yaml"]).gpt(rows()), gpt(rows()))


def test_a_config_of_another_network_is_rejected_by_its_key(fitted):
    Path("other.yaml").write_text("model: {gpt: {d_model: 32}}")
    with pytest.raises(CheckpointError, match=r"d_model: 16 in the checkpoint, 32 now"):
        trained.load(CHECKPOINT, ["tiny.yaml", "other.yaml"])


def test_compatible_differences_are_noted(saved, capsys):
    saved("--model.gpt.position.base", "500", "--data.batch_size", "8")
    trained.load("saved.ckpt")
    assert "other values" not in capsys.readouterr().err
    trained.load("saved.ckpt", ["tiny.yaml"])
    err = capsys.readouterr().err
    assert "model.gpt.position.base: 500.0 in the checkpoint, 10000.0 now" in err
    assert "batch_size" not in err


@pytest.mark.parametrize(
    "given",
    [
        "model: {gpt: {d_model: -1}}",
        "model: {gpt: {width: 3}}",
        "model: {network: {}}",
        "no: 1",
        "a: [",
        "data: Shakespeare",
        None,
    ],
)
def test_bad_configs_are_rejected_as_the_command_line_rejects_them(fitted, given):
    if given is not None:
        Path("bad.yaml").write_text(given)
    with pytest.raises(ConfigError, match=r"config: .*bad\.yaml"):
        trained.load(CHECKPOINT, ["bad.yaml"])


def gpt_of(config):
    return config["model"]["gpt"]["init_args"]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: gpt_of(c)["position"].update(class_path="my_evil.Evil"),
        lambda c: gpt_of(c).update(position="my_evil.Evil"),
        lambda c: gpt_of(c).update({"position.class_path": "my_evil.Evil"}),
        lambda c: gpt_of(c).update(position='{"class_path": "my_evil.Evil"}'),
        lambda c: gpt_of(c).update(position="my_evil.yaml"),
        lambda c: gpt_of(c)["attention"]["init_args"].update(qk_norm={"class_path": "my_evil.Evil"}),
        lambda c: gpt_of(c).update(init={"class_path": "bytelm.system.files.os.getpid"}),
        lambda c: gpt_of(c).update(init="bytelm.runs.logger.TensorBoardLogger"),
        lambda c: c["model"].update(gpt="my_evil.yaml"),
        lambda c: c["model"].update(gpt={"class_path": "my_evil.Evil"}),
        lambda c: c["model"].update(gpt=["my_evil.Evil"]),
    ],
)
def test_a_checkpoint_runs_no_code(altered, change):
    Path("my_evil.py").write_text(EVIL)
    Path("my_evil.yaml").write_text("{class_path: my_evil.Evil}")
    with pytest.raises(CheckpointError, match=r"altered\.ckpt.*(my_evil|bytelm\.\w+).*--config"):
        trained.load(altered(change))
    assert not Path("ran").exists()
    assert "my_evil" not in sys.modules


def test_of_a_checkpoints_config_only_the_network_and_the_tokenizer_are_looked_at(altered):
    Path("my_evil.py").write_text(EVIL)

    def change(config):
        config["model"].update(optimizer={"class_path": "my_evil.Evil"}, loss={"class_path": "my_evil.Evil"})
        config["data"]["class_path"] = "my_evil.Evil"
        config["trainer"]["callbacks"] = [{"class_path": "my_evil.Evil"}]

    trained.load(altered(change))
    assert not Path("ran").exists()


def test_a_flipped_bit_is_found(fitted):
    data = bytearray(CHECKPOINT.read_bytes())
    weight = torch.load(CHECKPOINT, weights_only=True)["state_dict"]["gpt.blocks.0.feedforward.up.weight"]
    data[data.index(weight.numpy().tobytes()) + 5] ^= 4
    Path("flipped.ckpt").write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"flipped\.ckpt' is damaged .*data/\d+ in it does not match its checksum"
    ):
        trained.load("flipped.ckpt")


def alibi(max_seq_len):
    return {"position": {"class_path": "bytelm.parts.position.ALiBi"}, "max_seq_len": max_seq_len}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited in the way of Linux")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n_layers": 10**8}, "n_layers: 100000000 is not a size of its weights"),
        ({"max_seq_len": 10**12}, "max_seq_len: 1000000000000 is not a size of its weights"),
        ({"vocab_size": 2**33}, "vocab_size: 8589934592 is not a size of its weights"),
        ({"d_ff": 10**300}, "d_ff: 1000"),
        ({"d_model": 2**20, "n_heads": 1}, "takes more memory than its weights"),
        (alibi(2**20), "takes more memory than its weights"),
        ({"d_ff": 2**16}, "is of another model"),
        ({"n_heads": 0}, "n_heads: 0 is not accepted"),
    ],
)
def test_a_network_that_is_larger_than_its_weights_is_not_built(altered, options, reason):
    path = altered(lambda config: gpt_of(config).update(options))
    start = time.process_time()
    with pytest.raises(CheckpointError, match=reason):
        trained.load(path)
    assert time.process_time() - start < 5
    assert torch.empty(2**30).numel() == 2**30  # the limit of memory was for the loading alone


VALUES = [
    *(None, "abc", -1, 2.5, 2**70, float("nan"), [], {}, [1, [2]], True, "x" * 20_000, torch.ones(3)),
    *(torch.eye(2).to_sparse(), torch.ones(16, dtype=torch.complex64), {"class_path": 3}, {"class_path": "os.system"}),
    *({"class_path": "bytelm.parts.position.ALiBi", "init_args": []}, {"init_args": {"n_layers": 10**9}}),
]


def places(value, keys=()):
    yield keys
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*keys, key))


def rejection(path):
    """The message of the error that a checkpoint is rejected with; None if it is accepted."""
    try:
        trained.load(path)
    except (CheckpointError, ConfigError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", thinned(range(3), 1))
def test_hostile_checkpoints_are_rejected_in_one_line_or_do_no_harm(fitted, seed):
    rng = random.Random(seed)
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    all_places = [keys for keys in places(checkpoint) if keys and keys[0] in ("state_dict", "config")]
    rejected = 0
    for _ in range(40):
        hostile = copy.deepcopy(checkpoint)
        *outer, last = rng.choice(all_places)
        inner = hostile
        for key in outer:
            inner = inner[key]
        inner[last] = rng.choice(VALUES)
        torch.save(hostile, "hostile.ckpt")
        if (message := rejection("hostile.ckpt")) is not None:
            assert "hostile.ckpt" in message or "tokenizer" in message
            assert "\n" not in message
            assert len(message) < 1000
            rejected += 1
    assert rejected > 8


@pytest.mark.parametrize(
    "change",
    [
        lambda c: gpt_of(c).update(d_model="wide"),
        lambda c: gpt_of(c).update(width=3),
        lambda c: gpt_of(c).update(position="Unknown"),
        lambda c: gpt_of(c).update({"no key": 3}),
        lambda c: c["model"].update(gpt=None),
        lambda c: c.pop("model"),
        lambda c: c.update(model=3),
        lambda c: c.update(data=3),
        lambda c: c["data"].update(init_args=["bytes"]),
    ],
)
def test_a_config_that_makes_no_network_is_the_checkpoints_fault(altered, change):
    with pytest.raises(CheckpointError, match=r"altered\.ckpt") as caught:
        trained.load(altered(change))
    assert "\n" not in str(caught.value)


def test_parts_of_the_users_need_the_config(saved):
    Path("my_position.py").write_text("from bytelm.parts.position import Rotary\n\nclass Mine(Rotary):\n    pass\n")
    Path("mine.yaml").write_text("model: {gpt: {position: my_position.Mine}}")
    gpt = saved("--config", "mine.yaml")
    for _ in range(2):  # imported before or not
        with pytest.raises(CheckpointError, match=r"my_position\.Mine.*--config"):
            trained.load("saved.ckpt")
        sys.modules.pop("my_position", None)
    found = trained.load("saved.ckpt", ["tiny.yaml", "mine.yaml"])
    assert type(found.gpt.position).__name__ == "Mine"
    assert torch.equal(found.gpt(rows()), gpt(rows()))


@pytest.mark.parametrize("from_files", [True, False])
def test_the_tokenizer_is_that_of_the_data(altered, monkeypatch, from_files):
    loaded = []
    monkeypatch.setattr(trained, "load_tokenizer", lambda name, key: loaded.append(name) or ByteTokenizer())
    shards = {"class_path": "bytelm.data.shards.TokenShards", "init_args": {"path": "data", "tokenizer": "gpt2"}}
    path = altered(lambda c: c.update(data=copy.deepcopy(shards)))
    if from_files:
        pytest.importorskip("bytelm.data.shards")
        config = yaml.safe_load(Path("tiny.yaml").read_text()) | {"data": shards}
        Path("shards.yaml").write_text(yaml.safe_dump(config))
    trained.load(path, ["shards.yaml"] if from_files else [])
    assert loaded == ["gpt2"]


def test_a_tokenizer_with_more_tokens_than_the_network_is_rejected(altered, monkeypatch):
    large = ByteTokenizer()
    large.vocab_size = 257
    monkeypatch.setattr(trained, "load_tokenizer", lambda name, key: large)
    path = altered(lambda c: c["data"]["init_args"].update(tokenizer="gpt2"))
    with pytest.raises(ConfigError, match=r"tokenizer.* 256 .*257"):
        trained.load(path)


def test_tokens_of_a_tokenizer_that_is_not_known_are_rejected(altered):
    path = altered(lambda c: c["data"]["init_args"].update(tokenizer=None))
    with pytest.raises(ConfigError, match=r"data\.tokenizer: None .*--config.*--tokenizer"):
        trained.load(path)


def test_devices(fitted):
    accelerator = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    assert trained.load(CHECKPOINT, device="auto").gpt.head.weight.device.type == accelerator.type
    for device in ("toaster", "cuda:99"):
        with pytest.raises(ConfigError, match=rf"device: '{device}'.*auto, cpu"):
            trained.load(CHECKPOINT, device=device)
