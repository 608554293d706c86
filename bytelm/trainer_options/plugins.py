"""Plugins and profilers of Lightning that would fail in a run, or that nothing would use."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import TorchSyncBatchNorm

from bytelm.errors import ConfigError

_RANKS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Environments of processes that another program starts: the program, and what it sets.
_LAUNCHED: dict[str, tuple[str, tuple[str, ...]]] = {
    "TorchElasticEnvironment": ("torchrun", ("LOCAL_RANK", *_RANKS)),
    "SLURMEnvironment": ("srun", ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS")),
    "LSFEnvironment": ("jsrun", ("LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK")),
    "KubeflowEnvironment": ("Kubeflow", _RANKS),
}
_OF_A_STRATEGY = {
    "FSDPPrecision": "it is used by Lightning's FSDPStrategy alone",
    "DeepSpeedPrecision": "it is used by Lightning's DeepSpeedStrategy alone",
}


def check_plugins(given: Mapping[str, Any]) -> None:
    """Checks plugins and the profiler before they are made.

    Args:
        given: The options of the Trainer, as plain values.

    Raises:
        ConfigError: One that cannot work here.
    """
    if _name(given.get("profiler")) in ("xla", "XLAProfiler"):
        raise ConfigError(
            "trainer.profiler", _name(given["profiler"]), "it needs a TPU; accepted: simple, advanced, pytorch, a class"
        )
    plugins = given.get("plugins")
    for name in map(_name, plugins if isinstance(plugins, list) else [plugins]):
        if name in _OF_A_STRATEGY:
            reason = f"{_OF_A_STRATEGY[name]}; accepted: trainer.precision, with trainer.strategy fsdp too"
            raise ConfigError("trainer.plugins", name, reason)
        launcher, variables = _LAUNCHED.get(name, ("", ()))
        if missing := [variable for variable in variables if variable not in os.environ]:
            reason = f"it is for processes that {launcher} starts, and {missing[0]} is not set in the environment"
            raise ConfigError(
                "trainer.plugins", name, f"{reason}; accepted: no such plugin, for a run that you start yourself"
            )


def check_layer_sync(trainer: Trainer, plugins: Sequence[Any]) -> None:
    """Checks that BatchNorm layers can be synchronised over ranks, which torch does on GPUs alone.

    Args:
        trainer: The Trainer.
        plugins: Those of `trainer.plugins`.

    Raises:
        ConfigError: The ranks are on CPUs.
    """
    strategy: Any = trainer.strategy
    synchronised = isinstance(getattr(strategy, "_layer_sync", None), TorchSyncBatchNorm)
    if synchronised and trainer.world_size > 1 and strategy.root_device.type == "cpu":
        reason = "torch's SyncBatchNorm works on GPUs alone; accepted on CPUs:"
        if any(isinstance(plugin, TorchSyncBatchNorm) for plugin in plugins):
            raise ConfigError("trainer.plugins", "TorchSyncBatchNorm", f"{reason} no such plugin")
        raise ConfigError("trainer.sync_batchnorm", True, f"{reason} false")


def _name(given: Any) -> str:
    """A name, or that of a class of Lightning's; of one of the user's its whole path."""
    path = str(given.get("class_path") if isinstance(given, Mapping) else given)
    return path.rpartition(".")[2] if path.startswith("lightning.") else path
