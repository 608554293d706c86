"""BestCheckpoint: the key `checkpoint`; keeps the checkpoints with the best scores, and best.ckpt, the best of them.

It is Lightning's ModelCheckpoint. With `save_top_k: 1`, the only file is best.ckpt. If there are several files, or the
user names them, best.ckpt is a link to the best of them, for `--ckpt_path best`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from bytelm.callbacks.run_folder import run_folder
from bytelm.config.messages import note
from bytelm.errors import ConfigError
from bytelm.runs.folder import checkpoint_of
from bytelm.runs.score import VAL_BPB, VAL_LOSS


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint whose files never overwrite each other.

    Args:
        kwargs: Options of ModelCheckpoint. With a `save_top_k` other than 1, file names include the step, unless
            `filename` includes it already: `best-step=300.ckpt`.

    Raises:
        ConfigError: A file would be last.ckpt, which every run writes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_names(self, "checkpoint", ("last",))
        if self.save_top_k not in (0, 1) and self.filename is not None and "{step" not in self.filename:
            self.filename += "-{step}"
        self._link: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        folder = run_folder(trainer)
        self._link = checkpoint_of(folder, "best") if stage == "fit" and folder is not None else None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_wanted = self.save_top_k != 0 and trainer.enable_validation and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if is_wanted and not self.best_model_path:
            note(f"no best.ckpt: {self.monitor} was not known when the key checkpoint saves (docs/runs.md)")

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero and self._link is not None and self.best_model_path:
            link_to(Path(self.best_model_path), self._link)


class BestOfAnyModule(BestCheckpoint):
    """BestCheckpoint of any LightningModule, whose score is known only when the module logs it.

    The score is val/bpb, or without it val/loss. A run without a score has no best.ckpt.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass  # RunRecord notes that the run has no score

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self.monitor is None:
            tags = (score.tag for score in (VAL_BPB, VAL_LOSS))
            self.monitor = next((tag for tag in tags if tag in monitor_candidates), None)
        if self.monitor is not None:
            super()._save_topk_checkpoint(trainer, monitor_candidates)


def check_names(callback: ModelCheckpoint, key: str, names: Sequence[str]) -> None:
    """Checks that a ModelCheckpoint leaves the files of every run alone.

    Args:
        callback: The callback.
        key: Its key in a config.
        names: The files of every run, without `.ckpt`, that it must not write.

    Raises:
        ConfigError: It would write one of them.
    """
    if callback.dirpath is not None:
        return
    if callback.filename in names:
        reason = f"every run writes {callback.filename}.ckpt itself; accepted: another filename, or a dirpath"
        raise ConfigError(f"{key}.filename", callback.filename, reason)
    if callback.save_last:
        reason = "every run writes last.ckpt itself (last_checkpoint); accepted: false, or a dirpath"
        raise ConfigError(f"{key}.save_last", callback.save_last, reason)


def link_to(file: Path, link: Path) -> None:
    """Makes `link` a symbolic link to a file and replaces an earlier link; a regular file of that name is kept.

    Args:
        file: An existing file.
        link: Path of the link; its folder need not exist.
    """
    if file.absolute() == link.absolute() or (link.exists() and not link.is_symlink()):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    partial = link.with_name(f".{link.name}.part")
    partial.unlink(missing_ok=True)
    # Relative, because a run's folder may be moved.
    partial.symlink_to(Path(os.path.relpath(file.resolve().parent, link.parent.resolve()), file.name))
    partial.replace(link)
