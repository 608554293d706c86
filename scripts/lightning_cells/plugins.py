"""Plugins of lightning.pytorch.plugins: precisions, checkpoint files, clusters, layers."""

from typing import Any

from lightning_cells.cell import Cell, Check, Run, flags
from lightning_cells.checks import TWO, dtypes, never, ranks_agree, says
from lightning_cells.trainer_options import BATCH_NORM

GROUP = "Plugins"
MINE = "lightning_cells.yours."
PREFIX = "--trainer.plugins"
CLUSTERS = "lightning.pytorch.plugins.environments."


def plugin(name: str, options: dict[str, str], documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of a plugin, with its options; further options of the run follow."""
    given = (PREFIX, details.pop("value", name), *flags(PREFIX, options))
    return Cell(GROUP, name, given, documented, check, more, **{"key": name, **details})


def cluster(name: str, documented: str, check: Check, **details: Any) -> Cell:
    """A cell of a cluster environment, with two processes."""
    return plugin(name, {}, documented, check, *TWO, value=CLUSTERS + name, **details)


def reads_back(io: str) -> Check:
    """Checkpoints go through the plugin, and last.ckpt is scored as the run was."""

    def look(run: Run) -> tuple[Any, Any]:
        used = run.seen["checkpoint_io"]  # before the second command, whose Observer writes the same file
        return (used, run.again("validate", "--ckpt_path", "last").score), (io, run.score)

    return Check("last.ckpt has the run's score", look)


def _own_io(run: Run) -> tuple[Any, Any]:
    return ("own io" in run.out, run.again("validate", "--ckpt_path", "last").score), (True, run.score)


def _own_cluster(run: Run) -> tuple[Any, Any]:
    observed, wanted = ranks_agree().look(run)
    return ("own environment" in run.out, observed), (True, wanted)


CELLS = (
    plugin("Precision", {}, "a precision of your own", says("own precision"), value=MINE + "OwnPrecision"),
    plugin("DoublePrecision", {}, "float64", dtypes("float64", "float64")),
    plugin("DoublePrecision", {}, "an error beside another precision", never, "--trainer.precision", "bf16-mixed",
           key="precision"),
    plugin("HalfPrecision", {"precision": "bf16-true"}, "bfloat16", dtypes("bfloat16", "bfloat16")),
    plugin("MixedPrecision", {"precision": "bf16-mixed", "device": "cpu"}, "float32 weights, products in bfloat16",
           dtypes("float32", "bfloat16")),
    plugin("MixedPrecision", {}, "your own subclass", dtypes("float32", "bfloat16"), value=MINE + "CpuMixed"),
    plugin("FSDPPrecision", {"precision": "bf16-mixed"}, "with FSDP1 alone", never),
    plugin("BitsandbytesPrecision", {"mode": "nf4"}, "linear layers in 4 bits, on a GPU", never, needs="bitsandbytes",
           everywhere=False),
    plugin("DeepSpeedPrecision", {"precision": "32-true"}, "with deepspeed alone", never),
    plugin("TransformerEnginePrecision", {"weights_dtype": "torch.bfloat16"}, "FP8 of NVIDIA's library", never,
           needs="transformer_engine", everywhere=False),
    plugin("XLAPrecision", {"precision": "32-true"}, "for TPUs", never, needs="torch_xla"),
    plugin("CheckpointIO", {}, "a way of your own to write checkpoints", Check(
           "it wrote them, and last.ckpt has the run's score", _own_io), value=MINE + "OwnIO"),
    plugin("TorchCheckpointIO", {}, "Lightning's way to write checkpoints", reads_back("TorchCheckpointIO")),
    plugin("AsyncCheckpointIO", {}, "writes in a thread", reads_back("AsyncCheckpointIO")),
    plugin("XLACheckpointIO", {}, "for TPUs", never, needs="torch_xla"),
    plugin("LayerSync", {}, "layers that all ranks share, of your own", says("own sync", steps=3), *TWO,
           value=MINE + "OwnSync"),
    plugin("TorchSyncBatchNorm", {}, "as sync_batchnorm", never, *TWO, *BATCH_NORM),
    plugin("ClusterEnvironment", {}, "a cluster of your own", Check(
           "it gave the port; 2 ranks, the same weights after 3 steps", _own_cluster), *TWO,
           value=MINE + "OwnEnvironment"),
    cluster("LightningEnvironment", "processes that Lightning starts", ranks_agree()),
    cluster("TorchElasticEnvironment", "processes that torchrun starts", never),
    cluster("SLURMEnvironment", "processes that SLURM starts", never),
    cluster("LSFEnvironment", "processes that LSF starts", never),
    cluster("MPIEnvironment", "processes that MPI starts", never, needs="mpi4py", everywhere=False),
    cluster("KubeflowEnvironment", "processes that Kubeflow starts", never),
    cluster("XLAEnvironment", "for TPUs", never, needs="torch_xla"),
)  # fmt: skip
