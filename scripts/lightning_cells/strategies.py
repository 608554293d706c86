"""Strategies: all registered names, and the classes of lightning.pytorch.strategies."""

from typing import Any

from lightning_cells.cell import Cell, Check
from lightning_cells.checks import TWO, never, ranks_agree, trained

GROUP = "Strategies"
DEEPSPEED = ("deepspeed", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_2_offload", "deepspeed_stage_3",
             "deepspeed_stage_3_offload", "deepspeed_stage_3_offload_nvme")  # fmt: skip


def strategy(name: str, documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of a strategy; further options of the run follow."""
    value = details.pop("value", name)
    return Cell(GROUP, name, ("--trainer.strategy", value), documented, check, more, **details)


def two(name: str, documented: str, *more: str, **details: Any) -> Cell:
    """A cell of a strategy with two processes."""
    return strategy(name, documented, ranks_agree(), *TWO, *more, **details)


CELLS = (
    strategy("auto", "one device, or ddp where there are several", trained(6)),
    two("ddp", "a process a device, gradients averaged"),
    two("ddp_find_unused_parameters_false", "ddp, every parameter used in each step"),
    two("ddp_find_unused_parameters_true", "ddp, with parameters that a step may not use"),
    *(strategy(f"{base}{end}", f"ddp, with processes from {how}", never, *TWO)
      for base, how in (("ddp_spawn", "multiprocessing's spawn"), ("ddp_fork", "fork"), ("ddp_notebook", "fork"))
      for end in ("", "_find_unused_parameters_false", "_find_unused_parameters_true")),
    two("fsdp", "weights, gradients and optimizer states spread over the processes"),
    strategy("fsdp_cpu_offload", "FSDP1 with weights in main memory", never, *TWO),
    *(strategy(name, "DeepSpeed's, on GPUs", never) for name in DEEPSPEED),
    strategy("single_device", "one device", trained(6)),
    strategy("single_device", "one of the devices", never, *TWO),
    *(strategy(name, "for TPUs", never) for name in ("single_xla", "single_tpu", "xla", "xla_debug")),
    two("DDPStrategy", "ddp"),
    two("DDPStrategy", "ddp, with options", "--trainer.strategy.static_graph", "true"),
    strategy("DDPStrategy", "ddp, with processes from fork", never, *TWO, "--trainer.strategy.start_method", "fork",
             key="start_method"),
    strategy("FSDPStrategy", "FSDP1", never, *TWO),
    strategy("ModelParallelStrategy", "tensor- and data-parallel, as configure_model says", never, *TWO),
    strategy("DeepSpeedStrategy", "DeepSpeed's, on GPUs", never),
    strategy("SingleDeviceStrategy", "one device", trained(6), "--trainer.strategy.device", "cpu"),
    strategy("SingleDeviceXLAStrategy", "for TPUs", never, "--trainer.strategy.device", "0", needs="torch_xla"),
    strategy("SingleTPUStrategy", "for TPUs", never, "--trainer.strategy.device", "0", needs="torch_xla"),
    strategy("XLAStrategy", "for TPUs", never),
    strategy("ParallelStrategy", "abstract", never),
    strategy("Strategy", "a strategy of your own", Check("its training step", lambda run: (
        run.out.count("own strategy") >= 6, True)), value="lightning_cells.yours.OwnStrategy"),
    strategy("nonsense", "no strategy", never, in_ci=True),
)  # fmt: skip
