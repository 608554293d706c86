"""LanguageModel under Lightning's loop: scores, clipping, compilation, and rejections before a run starts."""

import copy
import functools
import math
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from memory_logger import MemoryLogger
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bytelm.callbacks import TrainLog
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.language_model import LanguageModel
from bytelm.optim import AdamW, Lion, Muon, MuonAdamW, param_groups
from bytelm.parts.loss import CrossEntropy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]

OPTIMIZERS = {
    "AdamW": functools.partial(AdamW, lr=1e-2),
    "AdamW fused": functools.partial(AdamW, lr=1e-2, fused=True),
    "MuonAdamW": MuonAdamW,
    "Lion": functools.partial(Lion, lr=1e-3),
}


def tiny(**options):
    torch.manual_seed(0)
    gpt = GPT(d_model=16, n_heads=2, n_layers=1, d_ff=24, vocab_size=32, max_seq_len=8)
    for p in gpt.parameters():
        nn.init.normal_(p, std=0.3)
    return LanguageModel(gpt, **options)


def batches(*rows):
    """Batches of random inputs and targets with so many rows."""
    generator = torch.Generator().manual_seed(1)
    return DataLoader([tuple(torch.randint(32, (2, n, 8), generator=generator)) for n in rows], batch_size=None)


def trainer(**options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", devices=1, **{**quiet, **options})


def mean_nats(gpt, data):
    """Mean of -log p over all targets."""
    with torch.no_grad():
        terms = [-gpt(x).log_softmax(dim=-1).gather(2, y[..., None]).double().flatten() for x, y in data]
    return torch.cat(terms).mean().item()


class Gradients(Callback):
    """Keeps the gradients that each optimizer step used."""

    def __init__(self):
        self.steps = []

    def on_train_start(self, trainer, pl_module):
        def keep(optimizer, args, kwargs):
            self.steps.append([p.grad.clone() for p in pl_module.parameters()])

        # After the step: Lightning computes and clips the gradients in the closure that it hands to the optimizer.
        trainer.optimizers[0].register_step_post_hook(keep)

    def norms(self):
        return [math.sqrt(sum(g.double().square().sum().item() for g in step)) for step in self.steps]


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_are_plain_cross_entropy_whatever_the_training_loss(split):
    model = tiny(loss=functools.partial(CrossEntropy, label_smoothing=0.3, z_loss=0.1))
    data = batches(5, 2, 1)
    run = trainer().validate if split == "val" else trainer().test
    (scores,) = run(model, data, verbose=False)
    nats = mean_nats(model.gpt, data)
    assert scores == pytest.approx({f"{split}/loss": nats, f"{split}/bpb": nats / math.log(2)}, rel=1e-5)
    first = next(iter(data))
    assert model.training_step(first, 0).item() > 1.1 * mean_nats(model.gpt, [first])


def test_scores_of_a_bf16_network_keep_their_digits():
    model, data = tiny(), batches(*[16] * 50)
    (scores,) = trainer(precision="bf16-true").validate(model, data, verbose=False)
    with torch.no_grad():
        nats = torch.cat([model._nats(batch) for batch in data]).double().mean().item()
    assert scores == pytest.approx({"val/loss": nats, "val/bpb": nats / math.log(2)}, rel=1e-5)


def test_bits_per_byte_counts_the_bytes_of_the_datas_tokens():
    model, data = tiny(), batches(3, 2)
    token_bytes = torch.arange(1, 33)
    model.trainer = SimpleNamespace(datamodule=SimpleNamespace(token_bytes=token_bytes))
    model.setup("validate")
    for i, batch in enumerate(data):
        model.validation_step(batch, i)
    n_tokens = sum(y.numel() for _, y in data)
    n_bytes = sum((y + 1).sum().item() for _, y in data)
    expected = mean_nats(model.gpt, data) * n_tokens / math.log(2) / n_bytes
    assert model.val_bpb.compute().item() == pytest.approx(expected, rel=1e-5)


def test_prediction_gives_the_bits_of_each_target():
    model, (batch,) = tiny(), batches(4)
    with torch.no_grad():
        prediction = model.predict_step(batch, 0)
    assert torch.equal(prediction["targets"], batch[1])
    assert prediction["bits"].shape == (4, 8)
    assert prediction["bits"].mean().item() == pytest.approx(mean_nats(model.gpt, [batch]) / math.log(2), rel=1e-5)


def test_predicted_bits_of_a_bf16_network_are_nats_over_ln_2():
    model, data = tiny(), batches(4)
    (prediction,) = trainer(precision="bf16-true").predict(model, data)
    with torch.no_grad():
        nats = model._nats(next(iter(data)))
    torch.testing.assert_close(prediction["bits"], nats / math.log(2))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_a_plain_loop_to_the_bit(accumulate):
    model, data = tiny(), batches(4, 4, 4, 4)
    twin = copy.deepcopy(model.gpt)
    trainer(max_epochs=1, accumulate_grad_batches=accumulate, gradient_clip_val=0.5).fit(model, data)
    optimizer = torch.optim.AdamW(param_groups(twin))
    for first in range(0, 4, accumulate):
        optimizer.zero_grad()
        for x, y in list(data)[first : first + accumulate]:
            (F.cross_entropy(twin(x).flatten(0, 1), y.flatten()) / accumulate).backward()
        # In the order of the groups: sums in another order differ in the last bit.
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.5)
        optimizer.step()
    for (name, p), q in zip(model.gpt.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_logged_loss_and_gradient_norm_are_those_before_clipping(accumulate, clip):
    model = tiny(optimizer=functools.partial(AdamW, lr=0.0))  # so that the network stays the one measured below
    data = batches(4, 4)
    logger = MemoryLogger()
    options = {"max_steps": 1, "accumulate_grad_batches": accumulate, "log_every_n_steps": 1}
    trainer(gradient_clip_val=clip, logger=logger, callbacks=[TrainLog()], **options).fit(model, data)
    losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten()) for x, y in list(data)[:accumulate]]
    grads = torch.autograd.grad(sum(losses) / accumulate, list(model.parameters()))
    norm = math.sqrt(sum(g.square().sum().item() for g in grads))
    mean = sum(losses).item() / accumulate
    assert logger.values["train/loss"][-1] == (0, pytest.approx(mean, rel=1e-5))
    assert logger.values["grad/norm"][-1] == (0, pytest.approx(norm, rel=1e-5))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_gradients_are_clipped_by_norm(optimizer, precision):
    gradients = Gradients()
    fit = trainer(max_steps=2, precision=precision, gradient_clip_val=0.01, callbacks=[gradients])
    fit.fit(tiny(optimizer=optimizer), batches(4, 4))
    assert gradients.norms() == pytest.approx([0.01, 0.01], rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_gradients_are_clipped_by_value(optimizer, precision):
    gradients, unclipped = Gradients(), Gradients()
    options = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}
    trainer(max_steps=1, precision=precision, callbacks=[unclipped]).fit(tiny(optimizer=optimizer), batches(4))
    trainer(max_steps=1, precision=precision, callbacks=[gradients], **options).fit(
        tiny(optimizer=optimizer), batches(4)
    )
    for clipped, free in zip(gradients.steps[0], unclipped.steps[0], strict=True):
        torch.testing.assert_close(clipped, free.clamp(-1e-3, 1e-3))
    assert max(g.abs().max().item() for g in unclipped.steps[0]) > 1e-2


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_gradients_are_unscaled_before_they_are_clipped(optimizer):
    gradients, unclipped = Gradients(), Gradients()
    for clip, kept in ((0.01, gradients), (None, unclipped)):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
        fit = trainer(max_steps=1, plugins=[plugin], gradient_clip_val=clip, callbacks=[kept])
        fit.fit(tiny(optimizer=optimizer), batches(4))
    scale = 0.01 / unclipped.norms()[0]
    assert scale < 0.1
    for clipped, free in zip(gradients.steps[0], unclipped.steps[0], strict=True):
        torch.testing.assert_close(clipped, scale * free, rtol=1e-3, atol=1e-7)


def test_compiled_network_gives_the_eager_logits_under_the_same_keys():
    eager, compiled = tiny(), tiny(compile=True)
    keys = set(eager.state_dict())
    compiled.trainer = trainer()
    compiled.setup("fit")
    calls = []
    compiled.gpt.register_forward_hook(lambda *args: calls.append(torch.compiler.is_compiling()))
    ((tokens, _),) = batches(2)
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens), eager(tokens), rtol=0, atol=1e-5)
    assert calls == [True]
    assert set(compiled.state_dict()) == keys


@pytest.mark.slow
def test_blocks_are_compiled_once_for_all_of_them_under_the_same_keys():
    torch._dynamo.reset()
    torch.manual_seed(0)
    gpt = GPT(d_model=16, n_heads=2, n_layers=12, d_ff=24, vocab_size=32, max_seq_len=8)  # more than dynamo recompiles
    eager, compiled = LanguageModel(copy.deepcopy(gpt)), LanguageModel(gpt, compile="blocks")
    keys = list(eager.state_dict())
    compiled.trainer = trainer()
    compiled.setup("fit")
    counters.clear()
    ((tokens, targets),) = batches(2)
    loss = compiled.training_step((tokens, targets), 0)
    torch.testing.assert_close(loss, eager.training_step((tokens, targets), 0), rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2  # a block, and the loss
    assert list(compiled.state_dict()) == keys
    loss.backward()
    assert all(p.grad is not None for p in compiled.gpt.parameters())


def test_a_compiled_network_is_scored_without_compiling_again():
    torch._dynamo.reset()
    eager, compiled = tiny(), tiny(compile=True)
    data = batches(3, 2)
    expected = trainer().validate(eager, data, verbose=False)
    counters.clear()
    assert trainer().validate(compiled, data, verbose=False)[0] == pytest.approx(expected[0], rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 0


def test_without_a_compiler_the_network_runs_uncompiled_and_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    model = tiny(compile=True)
    model.trainer = trainer()
    with pytest.warns(UserWarning, match=r"compile: no C\+\+ compiler"):
        model.setup("fit")
    assert model.gpt._compiled_call_impl is None
    ((tokens, _),) = batches(2)
    torch.testing.assert_close(model(tokens), tiny()(tokens))


def data_of(**sizes):
    return SimpleNamespace(**{"vocab_size": 32, "seq_len": 8, "token_bytes": None, **sizes})


def test_check_accepts_exact_matches():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny().check(data_of())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"seq_len": 9}, r"seq_len: 9 .*max_seq_len.* 8"), ({"vocab_size": 33}, r"vocab_size: 32 .*33")],
)
def test_check_rejects_data_that_does_not_fit_the_network(sizes, message):
    with pytest.raises(ConfigError, match=message):
        tiny().check(data_of(**sizes))


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (functools.partial(AdamW, lr=-1.0), "-1.0"),
        (functools.partial(AdamW, betas=(0.9, 1.5)), "1.5"),
        (functools.partial(MuonAdamW, adamw_betas=(0.9, 1.5)), "1.5"),
        (functools.partial(MuonAdamW, adjust_lr_fn="unknown"), "unknown"),
        (Muon, "with 2 or 3 dimensions"),  # which cannot train the vectors
        (functools.partial(Lion, lr=-1.0), "its options"),
    ],
)
def test_check_rejects_impossible_optimizer_options(optimizer, message):
    with pytest.raises(ConfigError, match=f"model.optimizer.*: .*{message}"):
        tiny(optimizer=optimizer).check(data_of())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: LanguageModel(nn.LSTM(4, 4)),
            "gpt: 'LSTM' cannot be used; accepted: a bytelm.gpt.GPT; another",
        ),
        (lambda: tiny(loss=CrossEntropy()), "model.loss: 'CrossEntropy' cannot be used; it is an object"),
        (
            lambda: tiny(optimizer=torch.optim.SGD([torch.ones(1)], lr=0.1)),
            "optimizer: 'SGD' cannot be used; it is an object; accepted: the class",
        ),
        (
            lambda: GPT(d_model=16, n_heads=2, n_layers=1, d_ff=24, norm=nn.LayerNorm(16)),
            "model.gpt.norm: 'LayerNorm' cannot be used; it is an object",
        ),
    ],
)
def test_objects_in_the_place_of_classes_are_rejected(make, said):
    with pytest.raises(ConfigError) as raised:
        make()
    assert str(raised.value).startswith(said)
