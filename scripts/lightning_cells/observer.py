"""Observer: a callback that records what a run does, as JSON in seen-<rank>.json of the working directory.

It changes nothing. Cells compare its records with Lightning's documentation.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Observer(Callback):
    """Records what a run does.

    | key | value |
    | --- | --- |
    | batches | hash of each training batch, in order |
    | epochs | number of the epoch of each training batch |
    | steps | steps that optimizers have taken |
    | validations | of each validation: step at which it began, and its batches |
    | sanity | batches of the sanity check |
    | test, predict | batches of these |
    | flags | modes of torch in training; validation's inference mode |
    | gradients | norm and largest value of the gradients at each step, after clipping |
    | weights | hash of the weights at the end of the fit |
    | zeros | share of the weights that are 0 then |
    | dtypes | of the weights, of what the network returns, of what its matrices multiply |
    | device, strategy, precision, world_size, callbacks, loggers | the trainer's, mostly names of classes |
    | loaders | how often a training loader was made |
    | modules | names of the classes of the network's modules |
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {
            **{key: [] for key in ("batches", "epochs", "validations", "gradients")},
            **dict.fromkeys(("steps", "sanity", "test", "predict", "loaders"), 0),
            **{"flags": {}, "dtypes": {}, "weights": None},
        }
        self._hooks: list[Any] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        make_loader = data.train_dataloader

        def counted() -> Any:
            self.seen["loaders"] += 1
            return make_loader()

        if stage == "fit":
            data.train_dataloader = counted
        self.seen |= {
            "device": trainer.strategy.root_device.type,
            "strategy": type(trainer.strategy).__name__,
            "precision": type(trainer.precision_plugin).__name__,
            "checkpoint_io": type(trainer.strategy.checkpoint_io).__name__,
            "world_size": trainer.world_size,
            "callbacks": [type(callback).__name__ for callback in trainer.callbacks],  # type: ignore[attr-defined]
            "loggers": [type(logger).__name__ for logger in trainer.loggers],
            "modules": sorted({type(module).__name__ for module in pl_module.modules()}),
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gpt: Any = pl_module.gpt
        linear = next(module for module in gpt.modules() if isinstance(module, torch.nn.Linear))
        self.seen["modules"] = sorted({type(module).__name__ for module in pl_module.modules()})
        self._hooks = [
            gpt.register_forward_hook(lambda module, args, output: self._note_dtype("output", output)),
            linear.register_forward_hook(lambda module, args, output: self._note_dtype("product", output)),
            register_optimizer_step_pre_hook(self._step),
        ]
        self._note_dtype("weights", next(pl_module.parameters()))

    def _note_dtype(self, name: str, tensor: Any) -> None:
        if isinstance(tensor, Tensor):
            self.seen["dtypes"][name] = str(tensor.dtype).removeprefix("torch.")

    def _step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.seen["steps"] += 1
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [_whole(p.grad).double().flatten() for p in parameters]
        if gradients:
            whole = torch.cat(gradients)
            self.seen["gradients"].append([float(whole.norm()), float(whole.abs().max())])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen["batches"].append(_hash([batch[0]]))
        self.seen["epochs"].append(trainer.current_epoch)
        self.seen["flags"] |= {
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
            "benchmark": torch.backends.cudnn.benchmark,
            "anomaly": torch.is_anomaly_enabled(),
        }

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seen["validations"].append([trainer.global_step, 0])

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.sanity_checking:
            self.seen["sanity"] += 1
            return
        self.seen["validations"][-1][1] += 1
        self.seen["flags"]["inference_mode"] = torch.is_inference_mode_enabled()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen["test"] += 1

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen["predict"] += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = [_whole(weight.detach()) for weight in pl_module.parameters()]
        self.seen["weights"] = _hash(weights)
        self.seen["zeros"] = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        self.seen["callbacks"] = [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        Path(f"seen-{trainer.global_rank}.json").write_text(json.dumps(self.seen))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _hash(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
