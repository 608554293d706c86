"""Memory of a process can be limited for a while."""

import sys

import pytest
import torch

from bytelm.system.memory import limited_memory, peak_memory_mb


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_memory_is_limited_inside_alone():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with limited_memory(2**28):
        assert torch.empty(2**26, dtype=torch.uint8).numel() == 2**26
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(2**30, dtype=torch.uint8)
    assert torch.empty(2**30, dtype=torch.uint8).numel() == 2**30
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_peak_is_of_megabytes():
    peak = peak_memory_mb()
    assert peak is None or 50 < peak < 100_000
