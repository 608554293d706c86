"""The training loss and its regularisers against formulas."""

import json
import math
import subprocess
import sys

import pytest
import torch
from test_ranks import Run, write_inputs
from thinned import thinned
from torch.nn import functional as F

from bytelm.gpt import Head
from bytelm.parts.loss import ChunkedCrossEntropy, CrossEntropy, FusedCrossEntropy, HiddenCrossEntropy


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) + 2
    return logits, torch.randint(7, (2, 5), generator=generator)


@pytest.mark.parametrize(("label_smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (1.0, 0.0), (0.0, 1e-2), (0.3, 1e-1)])
def test_loss_is_the_formula(batch, label_smoothing, z_loss):
    logits, targets = batch
    total = 0.0
    for row, row_targets in zip(logits.tolist(), targets.tolist(), strict=True):
        for scores, target in zip(row, row_targets, strict=True):
            log_z = math.log(sum(math.exp(score) for score in scores))
            smooth = sum(log_z - score for score in scores) / 7
            total += (1 - label_smoothing) * (log_z - scores[target]) + label_smoothing * smooth + z_loss * log_z**2
    loss = CrossEntropy(label_smoothing, z_loss)(logits, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(total / 10, rel=1e-5)


def test_loss_without_regularisers_is_plain_cross_entropy_to_the_bit(batch):
    logits, targets = batch
    logits = logits.float()
    assert torch.equal(CrossEntropy()(logits, targets), F.cross_entropy(logits.transpose(1, 2), targets))


def test_z_loss_pushes_the_normaliser_towards_one(batch):
    logits, targets = batch
    logits.requires_grad_()
    (CrossEntropy(z_loss=1.0)(logits, targets) - CrossEntropy()(logits, targets)).backward()
    log_z = logits.detach().exp().sum(dim=-1).log()
    torch.testing.assert_close(logits.grad.sum(dim=-1), 2 * log_z / 10, rtol=1e-5, atol=1e-6)


def test_fused_loss_without_a_gpu_is_plain_cross_entropy(batch):
    logits, targets = batch
    ours, plain = (logits.float().requires_grad_() for _ in range(2))
    fused = FusedCrossEntropy()(ours, targets)
    assert torch.equal(fused, CrossEntropy()(plain, targets))
    assert torch.equal(
        *(torch.autograd.grad(x, y)[0] for x, y in ((fused, ours), (CrossEntropy()(plain, targets), plain)))
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels are for GPUs")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocab_size", [7, 8192, 50_304])
def test_the_fused_loss_has_the_gradients_of_cross_entropy(dtype, vocab_size):
    generator = torch.Generator("cuda").manual_seed(0)
    logits = 3 * torch.randn(4, 75, vocab_size, device="cuda", generator=generator).to(dtype)
    targets = torch.randint(vocab_size, (4, 75), device="cuda", generator=generator)
    fused = FusedCrossEntropy()
    for factor in (1.0, 0.2, 0.2, 3.0):  # guessed wrong, then right, then wrong
        ours, plain = (logits.clone().requires_grad_() for _ in range(2))
        loss = fused(ours * 1.0, targets)
        expected = CrossEntropy()(plain, targets)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        (loss * factor).backward()
        (expected * factor).backward()
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels are for GPUs")
def test_fused_loss_with_more_than_2_31_logits():
    logits = torch.zeros(2**31 // 50_304 + 1, 1, 50_304, device="cuda", dtype=torch.bfloat16).requires_grad_()
    targets = torch.zeros(logits.shape[:2], dtype=torch.int64, device="cuda")
    (3 * FusedCrossEntropy()(logits * 1.0, targets)).backward()  # times 3, so that the gradients are gone over again
    expected = 3 / len(logits) * (1 / 50_304 - torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(logits.grad[-1, 0, :2].float().cpu(), expected, rtol=1e-2, atol=0)


INTERPRETED = """
import torch
from torch.nn import functional as F

from bytelm.kernels.cross_entropy import cross_entropy

generator = torch.Generator().manual_seed(0)
for vocab_size in (1000, 8192, 20_001):
    for dtype, rtol in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
        logits = (4 * torch.randn(3, vocab_size, generator=generator)).to(dtype)
        targets, guess = torch.tensor([0, vocab_size - 1, 77]), torch.tensor(0.5)
        ours, plain = (logits.clone().requires_grad_() for _ in range(2))
        loss, expected = cross_entropy(ours * 1.0, targets, guess), F.cross_entropy(plain.float(), targets)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        for result in (loss, expected):
            (0.5 * result).backward()
        torch.testing.assert_close(ours.grad, plain.grad, rtol=rtol, atol=1e-8)
"""


def test_the_kernel_interpreted_has_the_gradients_of_cross_entropy(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which is read when the kernels are
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True)


KERNELS = {
    ("_cross_entropy", True): "*bf16 *i64 *fp32 *fp32 i32 i32",
    ("_cross_entropy", False): "*bf16 *i64 *fp32 *fp32 i32 i32",
    ("_rescale", None): "*bf16 i64 *fp32 *fp32",
}


@pytest.mark.parametrize(("name", "differentiate"), KERNELS)
def test_the_kernels_compile_for_hopper_wherever_there_is_triton(name, differentiate):
    triton = pytest.importorskip("triton")  # comes with torch for GPUs; compiling takes no GPU
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bytelm.kernels import cross_entropy as kernels

    kernel = getattr(kernels, name)
    constants = {"block": kernels.BLOCK}
    if differentiate is not None:
        constants |= {"differentiate": differentiate, "lane": kernels.LANE}
    types = [*KERNELS[name, differentiate].split(), *["constexpr"] * len(constants)]
    places = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    source = ASTSource(kernel, dict(zip(kernel.arg_names, types, strict=True)), places)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})
    assert ".target sm_90" in compiled.asm["ptx"]


class Watched(Head):
    """A head that notes for how many tokens it makes logits at a time."""

    def forward(self, x):
        self.sizes = [*getattr(self, "sizes", []), x.shape[0] if x.ndim == 2 else x.shape[0] * x.shape[1]]
        return super().forward(x)


def hidden_and_head(dtype=torch.float64, **options):
    torch.manual_seed(0)
    head = Watched(6, 11, **{"bias": True, "softcap": 3.0, **options}).to(dtype)
    hidden = torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    return hidden, head, torch.randint(11, (2, 5))


def differentiated(loss, hidden, *parameters):
    gradients = torch.autograd.grad(3 * loss, [hidden, *parameters])  # as where a batch is a share of a step
    return [loss.detach(), *gradients]


def test_the_loss_of_hidden_states_is_that_of_their_logits():
    hidden, head, targets = hidden_and_head()
    plain, of_hidden = (loss(label_smoothing=0.2, z_loss=0.1) for loss in (CrossEntropy, HiddenCrossEntropy))
    expected = differentiated(plain(head(hidden), targets), hidden, *head.parameters())
    for ours, theirs in zip(
        differentiated(of_hidden(hidden, head, targets), hidden, *head.parameters()), expected, strict=True
    ):
        assert torch.equal(ours, theirs)
    assert HiddenCrossEntropy.takes_hidden


@pytest.mark.parametrize("chunk_tokens", [1, 3, 10, 64])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "z_loss": 0.1}])
def test_chunked_is_the_plain_loss_with_its_gradients(chunk_tokens, options):
    hidden, head, targets = hidden_and_head()
    plain = CrossEntropy(**options)(head(hidden), targets)
    expected = differentiated(plain, hidden, *head.parameters())
    head.sizes = []
    chunked = ChunkedCrossEntropy(chunk_tokens, **options)(hidden, head, targets)
    torch.testing.assert_close(differentiated(chunked, hidden, *head.parameters()), expected, rtol=1e-5, atol=1e-6)
    assert max(head.sizes) == min(chunk_tokens, 10)
    assert sum(head.sizes) == 10


@pytest.mark.parametrize("chunk_tokens", [None, 4])
def test_fused_in_chunks_is_the_plain_loss_on_the_cpu(chunk_tokens):
    hidden, head, targets = hidden_and_head(torch.float32)
    expected = differentiated(CrossEntropy()(head(hidden), targets), hidden, *head.parameters())
    loss = FusedCrossEntropy(chunk_tokens)
    assert loss.takes_hidden == (chunk_tokens is not None)
    value = loss(hidden, head, targets) if loss.takes_hidden else loss(head(hidden), targets)
    torch.testing.assert_close(differentiated(value, hidden, *head.parameters()), expected, rtol=1e-5, atol=1e-6)


def test_chunked_under_autocast_stays_near_float32():
    hidden, head, targets = hidden_and_head(torch.float32)
    expected = differentiated(CrossEntropy()(head(hidden), targets), hidden, *head.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = ChunkedCrossEntropy(3)(hidden, head, targets)
    assert low.dtype == torch.float32
    torch.testing.assert_close(differentiated(low, hidden, *head.parameters()), expected, rtol=0.05, atol=0.05)


def test_chunked_without_gradients_and_with_a_frozen_head():
    hidden, head, targets = hidden_and_head()
    expected = CrossEntropy()(head(hidden), targets)
    with torch.no_grad():
        torch.testing.assert_close(ChunkedCrossEntropy(3)(hidden, head, targets), expected)
    gradient = torch.autograd.grad(expected, hidden)[0]
    head.requires_grad_(False)
    frozen = ChunkedCrossEntropy(3)(hidden, head, targets)
    torch.testing.assert_close(torch.autograd.grad(frozen, hidden)[0], gradient)


@pytest.mark.parametrize("compiled", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_training_with_a_chunked_loss_equals_the_plain_one(run, compiled):
    options = ("--trainer.accumulate_grad_batches", "2", "--model.compile", compiled)
    plain = run("--experiment", "plain", *options).model.state_dict()
    loss = "{class_path: ChunkedCrossEntropy, init_args: {chunk_tokens: 50}}"
    chunked = run("--experiment", "chunked", "--model.loss", loss, *options).model.state_dict()
    for name in plain:
        torch.testing.assert_close(chunked[name], plain[name], rtol=1e-3, atol=2e-5)


def test_a_loss_of_hidden_states_is_rejected_beside_a_memory_that_changes_logits(rejected):
    options = ("--model.gpt.memory", "NGramMemory", "--data.order", "folds", "--model.loss", "ChunkedCrossEntropy")
    assert rejected(*options) == (
        "bytelm: error: model.loss: 'ChunkedCrossEntropy' cannot be used; accepted with the memory NGramMemory, which "
        "changes logits: losses that take logits"
    )


@pytest.mark.parametrize("strategy", thinned(["ddp", "fsdp"], 1))
def test_two_ranks_train_with_a_chunked_loss_as_with_the_plain_one(tmp_path, strategy):
    write_inputs(tmp_path)
    losses = {}
    for loss in ("CrossEntropy", "ChunkedCrossEntropy"):
        options = ("--model.loss", loss, "--trainer.strategy", strategy, "--experiment", loss)
        two = Run(tmp_path, *options, "--time_budget.limit", "4 steps")
        status, _ = two.end()
        assert status == 0, two.err
        losses[loss] = json.loads((tmp_path / f"runs/{loss}/version_0/record.json").read_text())["val_loss"]
    assert losses["ChunkedCrossEntropy"] == pytest.approx(losses["CrossEntropy"], abs=1e-4)
