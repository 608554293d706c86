"""Strategies: all registered names, and the classes of lightning.pytorch.strategies."""

from typing import Any

from lightning_cells.cell import Cell, Check
from lightning_cells.trainer_options import TWO, never, ranks_agree

GROUP = "Strategies"


def strategy(name: str, documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of a strategy."""
    value = details.pop("value", name)
    return Cell(GROUP, name, ("--trainer.strategy", value, *more), documented, check, **{"key": "strategy", **details})


def two(name: str, documented: str, **details: Any) -> Cell:
    """A cell of a strategy with two processes."""
    return strategy(name, documented, ranks_agree(), *TWO, **details)


def one(name: str, documented: str, **details: Any) -> Cell:
    """A cell of a strategy with one process."""
    return strategy(name, documented, lambda run: (run.seen["steps"], 6), **details)


CELLS = (
    one("auto", "one device, or ddp where there are several"),
    two("ddp", "a process a device, gradients averaged", in_ci=True),
    two("ddp_find_unused_parameters_false", "the same"),
    two("ddp_find_unused_parameters_true", "the same, with parameters that are not used"),
    *(two(f"{base}{end}", f"the same, with processes from {how}")
      for base, how in (("ddp_spawn", "multiprocessing's spawn"), ("ddp_fork", "fork"), ("ddp_notebook", "fork"))
      for end in ("", "_find_unused_parameters_false", "_find_unused_parameters_true")),
    two("fsdp", "weights, gradients and optimizer states spread over the processes"),
    two("fsdp_cpu_offload", "FSDP1 with weights in main memory"),
    *(strategy(name, "needs GPUs and the package deepspeed", never, needs="deepspeed", everywhere=False)
      for name in ("deepspeed", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_2_offload",
                   "deepspeed_stage_3", "deepspeed_stage_3_offload", "deepspeed_stage_3_offload_nvme")),
    one("single_device", "one device"),
    *(strategy(name, "for TPUs", never, needs="torch_xla", everywhere=False)
      for name in ("single_xla", "single_tpu", "xla", "xla_debug")),
    two("DDPStrategy", "ddp, with options"),
    strategy("DDPStrategy", "ddp, with options", ranks_agree(), *TWO, "--trainer.strategy.static_graph", "true"),
    two("FSDPStrategy", "FSDP1"),
    two("ModelParallelStrategy", "tensor- and data-parallel, as configure_model says"),
    strategy("DeepSpeedStrategy", "needs GPUs and the package deepspeed", never, needs="deepspeed", everywhere=False),
    strategy("SingleDeviceStrategy", "one device", lambda run: (run.seen["steps"], 6), "--trainer.strategy.device", "cpu"),
    strategy("SingleDeviceXLAStrategy", "for TPUs", never, "--trainer.strategy.device", "0", needs="torch_xla",
             everywhere=False),
    strategy("SingleTPUStrategy", "for TPUs", never, "--trainer.strategy.device", "0", needs="torch_xla",
             everywhere=False),
    strategy("XLAStrategy", "for TPUs", never, needs="torch_xla", everywhere=False),
    strategy("SingleHPUStrategy", "for Gaudi", never, everywhere=False),
    strategy("HPUParallelStrategy", "for Gaudi", never, everywhere=False),
    strategy("ParallelStrategy", "abstract", never),
    strategy("Strategy", "a strategy of your own", lambda run: (run.out.count("own strategy") >= 6, True),
             value="lightning_cells.yours.OwnStrategy"),
    strategy("nonsense", "no strategy", never, in_ci=True),
)  # fmt: skip
