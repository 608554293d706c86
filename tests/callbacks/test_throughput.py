"""The peak that a GPU's MFU is a share of."""

from types import SimpleNamespace

import pytest
import torch

from bytelm.callbacks import Throughput, TimeBudget, throughput


@pytest.mark.parametrize(
    ("gpu", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16-mixed", 989e12),
        ("NVIDIA H200", "16-mixed", 989e12),
        ("NVIDIA H200", "32-true", torch.float32),
        ("Tesla T4", "bf16-true", torch.bfloat16),
        ("Tesla T4", "16-mixed", torch.float16),
        ("Tesla T4", "32-true", torch.float32),
    ],
)
def test_the_peak_is_that_of_the_runs_precision(monkeypatch, gpu, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    monkeypatch.setattr(throughput, "get_available_flops", lambda device, dtype: dtype)
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    callback = Throughput()
    callback.on_train_start(SimpleNamespace(callbacks=[TimeBudget()], strategy=strategy, precision=precision), None)
    assert callback.peak_flops == peak


def test_rows_of_several_lengths_count_by_their_tokens():
    lengths = throughput.Lengths()
    lengths.add(1_024, 256)
    assert lengths.mean == 256
    lengths.add(3_072, 512)
    assert lengths.mean == 448
