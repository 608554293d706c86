"""Strategies that cannot be used are rejected before training."""

import pytest


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("fsdp_cpu_offload", "fsdp_cpu_offload"),
        ("FSDPStrategy", "FSDPStrategy"),
        ("lightning.pytorch.strategies.FSDPStrategy", "lightning.pytorch.strategies.FSDPStrategy"),
        ("{class_path: FSDPStrategy, init_args: {cpu_offload: true}}", "FSDPStrategy"),
    ],
)
def test_lightnings_fsdp_is_rejected_in_favour_of_bytelms(given, name, rejected):
    line = rejected("--trainer.strategy", given)
    assert line.startswith(f"bytelm: error: trainer.strategy: {name!r} cannot be used; ")
    assert "accepted: fsdp" in line
