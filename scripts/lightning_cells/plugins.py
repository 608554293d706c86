"""Plugins of lightning.pytorch.plugins: precisions, checkpoint files, clusters, layers."""

from typing import Any

from lightning_cells.cell import Cell, Check, Run
from lightning_cells.trainer_options import TWO, dtypes, never, ranks_agree

GROUP = "Plugins"
MINE = "lightning_cells.yours."


def plugin(name: str, options: dict[str, str], documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of a plugin, with its options; further options of the run follow."""
    given = [word for key, value in options.items() for word in (f"--trainer.plugins.{key}", value)]
    value = details.pop("value", name)
    return Cell(GROUP, name, ("--trainer.plugins", value, *given, *more), documented, check, **{"key": name, **details})


def reads_back(io: str) -> Check:
    """Checkpoints go through the plugin, and last.ckpt is scored as the run was."""

    def check(run: Run) -> tuple[Any, Any]:
        used = run.seen["checkpoint_io"]  # before the second command, whose Observer writes the same file
        scored = run.again("validate", "--ckpt_path", "last").score
        return (used, scored), (io, run.score)

    return check


def own_io(run: Run) -> tuple[Any, Any]:
    """The plugin wrote the checkpoints; validate reads last.ckpt."""
    return ("own io" in run.out, run.again("validate", "--ckpt_path", "last").score), (True, run.score)


ENVIRONMENT = "lightning.pytorch.plugins.environments."

CELLS = (
    plugin("Precision", {}, "a precision of your own", lambda run: (run.out.count("own precision") >= 6, True),
           value=MINE + "OwnPrecision"),
    plugin("DoublePrecision", {}, "float64", dtypes("float64", "float64")),
    plugin("HalfPrecision", {"precision": "bf16-true"}, "bfloat16", dtypes("bfloat16", "bfloat16")),
    plugin("MixedPrecision", {"precision": "bf16-mixed", "device": "cpu"}, "float32 weights, products in bfloat16",
           dtypes("float32", "bfloat16")),
    plugin("MixedPrecision", {}, "a subclass of yours", dtypes("float32", "bfloat16"), value=MINE + "CpuMixed"),
    plugin("FSDPPrecision", {"precision": "bf16-mixed"}, "with FSDP1 alone", never),
    plugin("BitsandbytesPrecision", {"mode": "nf4"}, "4 bits, on a GPU", never, needs="bitsandbytes", everywhere=False),
    plugin("DeepSpeedPrecision", {"precision": "32-true"}, "with deepspeed alone", never),
    plugin("TransformerEnginePrecision", {"weights_dtype": "torch.bfloat16"}, "FP8 of NVIDIA's library", never,
           needs="transformer_engine", everywhere=False),
    plugin("XLAPrecision", {"precision": "32-true"}, "for TPUs", never, needs="torch_xla", everywhere=False),
    plugin("CheckpointIO", {}, "a way of your own to write checkpoints", own_io, value=MINE + "OwnIO", in_ci=True),
    plugin("TorchCheckpointIO", {}, "Lightning's way to write checkpoints", reads_back("TorchCheckpointIO")),
    plugin("AsyncCheckpointIO", {}, "writes in a thread", reads_back("AsyncCheckpointIO")),
    plugin("XLACheckpointIO", {}, "for TPUs", never, needs="torch_xla", everywhere=False),
    plugin("LayerSync", {}, "layers that all ranks share, of your own", lambda run: ("own sync" in run.out, True), *TWO,
           value=MINE + "OwnSync"),
    plugin("TorchSyncBatchNorm", {}, "as sync_batchnorm", lambda run: (
        "SyncBatchNorm" in run.seen["modules"], True), *TWO, "--model.gpt.feedforward", MINE + "WithBatchNorm"),
    plugin("ClusterEnvironment", {}, "a cluster of your own", lambda run: (
        ("own environment" in run.out, ranks_agree()(run)[0]), (True, ranks_agree()(run)[1])), *TWO,
        value=MINE + "OwnEnvironment"),
    plugin("LightningEnvironment", {}, "processes that Lightning starts", ranks_agree(), *TWO,
           value=ENVIRONMENT + "LightningEnvironment"),
    plugin("TorchElasticEnvironment", {}, "processes that torchrun starts", never, *TWO,
           value=ENVIRONMENT + "TorchElasticEnvironment"),
    plugin("SLURMEnvironment", {}, "processes that SLURM starts", never, *TWO, value=ENVIRONMENT + "SLURMEnvironment"),
    plugin("LSFEnvironment", {}, "processes that LSF starts", never, *TWO, value=ENVIRONMENT + "LSFEnvironment"),
    plugin("MPIEnvironment", {}, "processes that MPI starts", never, *TWO, value=ENVIRONMENT + "MPIEnvironment",
           needs="mpi4py", everywhere=False),
    plugin("KubeflowEnvironment", {}, "processes that Kubeflow starts", never, *TWO,
           value=ENVIRONMENT + "KubeflowEnvironment"),
    plugin("XLAEnvironment", {}, "for TPUs", never, value=ENVIRONMENT + "XLAEnvironment", needs="torch_xla",
           everywhere=False),
)  # fmt: skip
