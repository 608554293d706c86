"""The training loss and its regularisers against formulas."""

import math
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from bytelm.parts.loss import CrossEntropy, FusedCrossEntropy


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


def test_the_fused_loss_is_plain_cross_entropy_where_there_is_no_gpu(batch):
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
def test_the_fused_loss_takes_more_logits_than_31_bits_can_count():
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
