"""LanguageModel: a GPT, a loss and an optimizer as a LightningModule. Schedules and time are not part of it.

Logged: val/loss (nats per token), and val/bpb if the number of bytes of each token is known; in a test, test/loss and
test/bpb.
"""

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from bytelm.config.values import PositiveInt
from bytelm.data.base import TokenData, token_data
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.metrics import BitsPerByte, NatsPerToken
from bytelm.optim import (
    AdamW,
    OptimizerFactory,
    check_dense_gradients,
    param_groups,
    regroup,
    rejected,
    takes_sparse_gradients,
)
from bytelm.parts import contract
from bytelm.parts.contract import MakeLoss, Run, class_of
from bytelm.parts.loss import CrossEntropy
from bytelm.parts.shapes import check_shapes
from bytelm.row_threads import RowThreads
from bytelm.strategies import FSDP, shard, strategy_name

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, token ids, each (B, T)."""

BYTES = 256  # tokens of a vocabulary of bytes
SCORED_AT_ONCE = 16_384  # tokens whose logits are in float32 at a time: 3 GB with 50,304 logits each


class LanguageModel(LightningModule):
    """Trains a GPT to predict the next token.

    In a Trainer of your own, WeightAveraging needs `use_buffers=False`: it would average constants, and damage some.

    Args:
        gpt: The network.
        loss: Training loss; validation always reports plain cross-entropy.
        optimizer: Optimizer and its options; it receives the parameters in groups (see optim/groups.py).
        compile: Whether to run the network through torch.compile, if the machine supports it. `blocks` compiles it
            block by block; identical blocks share one result. With many layers this takes a fraction of the time, and
            ranks exchange a block's gradients while the previous block's are still computed. fsdp always compiles by
            blocks.
        row_threads: If given, a training step is computed by so many threads on the CPU, each with a part of the rows
            and with operators of one thread (row_threads.py). For small networks; the others' operators are better
            divided over all threads.
    """

    clips_by_total_norm = True  # for ShardedStep: gradients are clipped by the norm of those of all ranks
    repeatable_step = True  # for TimeBudget: a step can be run and undone before training, and dropped at its end
    is_compiled = False  # whether the network runs through torch.compile; known after `setup`

    def __init__(
        self,
        gpt: GPT,
        loss: MakeLoss = CrossEntropy,
        optimizer: OptimizerFactory = AdamW,
        compile: bool | Literal["blocks"] = False,
        row_threads: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(gpt, GPT):
            accepted = "accepted: a bytelm.gpt.GPT; another network needs a LightningModule of yours"
            raise ConfigError("gpt", type(gpt).__name__, accepted)
        if isinstance(optimizer, Optimizer):
            accepted = "it is an object; accepted: the class, or a partial of it, such as partial(SGD, lr=0.1)"
            raise ConfigError("optimizer", type(optimizer).__name__, accepted)
        self.gpt = gpt
        self.loss = contract.make("model.loss", loss, d_model=gpt.d_model, vocab_size=gpt.vocab_size)
        self.optimizer = optimizer
        self.use_compile = compile
        self.row_threads = None if row_threads is None else RowThreads(row_threads)
        self._is_prepared = False
        self._batch_is_checked = False
        self.val_loss = NatsPerToken()
        self.val_bpb: BitsPerByte | None = BitsPerByte()
        self._grad_norm: Tensor | None = None
        self._flops_per_token: dict[int, int] = {}  # by the length of rows; counting them takes a traversal
        # Collected once: traversing the module tree takes a quarter of a millisecond.
        events = ("prepare_in_pieces", "on_train_start", "on_train_batch_start", "on_evaluation_start")
        self._parts_told = {event: [*contract.declaring(gpt, event)] for event in events}
        self._with_auxiliary_loss = [*contract.declaring(gpt, "auxiliary_loss")]

    def check(self, data: TokenData, trainer: Trainer | None = None) -> None:
        """Rejects settings that would fail late, before training: sizes that do not fit, parts that cannot work.

        Args:
            data: The data that the model is trained or scored on.
            trainer: The trainer whose strategy, precision and device parts are checked with; default: one CPU in
                float32.

        Raises:
            ConfigError: A setting cannot work; the message names the key, the value and the accepted values.
        """
        if data.seq_len > self.gpt.max_seq_len:
            raise ConfigError(
                "data.seq_len", data.seq_len, f"accepted: up to max_seq_len, which is {self.gpt.max_seq_len}"
            )
        if data.vocab_size > self.gpt.vocab_size:
            raise ConfigError(
                "model.gpt.vocab_size", self.gpt.vocab_size, f"accepted: from {data.vocab_size}, the tokens of the data"
            )
        check_dense_gradients(self.configure_optimizers(), self.gpt)
        self._check_loss()
        self._check_row_threads(trainer)
        plugin = None if trainer is None else trainer.precision_plugin
        run = Run(
            network=self.gpt,
            data_order=getattr(data, "order", None),
            optimizer=class_of(self.optimizer).__name__,
            takes_sparse_gradients=lambda: takes_sparse_gradients(self.optimizer, param_groups(self)),
            strategy="single" if trainer is None else strategy_name(trainer.strategy),
            precision="32-true" if plugin is None else str(getattr(plugin, "label", plugin.precision)),
            device=torch.device("cpu") if trainer is None else trainer.strategy.root_device,
        )
        contract.check([self.gpt, self.loss], run)
        check_shapes(self.gpt, self.loss)

    def without_effect(self, key: str = "optimizer") -> Iterator[str]:
        """Yields notes of options of the optimizer that have no effect on this network's parameter groups.

        Args:
            key: The optimizer's name in the notes.
        """
        find = getattr(class_of(self.optimizer), "without_effect", None)
        if find is not None and isinstance(self.optimizer, partial):
            groups = {group["name"] for group in param_groups(self)}
            yield from (f"{key}.{line}" for line in find(self.optimizer.keywords, groups))

    def _check_row_threads(self, trainer: Trainer | None) -> None:
        if self.row_threads is None:
            return
        key, n = "model.row_threads", self.row_threads.n_threads
        if trainer is not None and trainer.strategy.root_device.type != "cpu":
            raise ConfigError(
                key, n, f"accepted on {trainer.strategy.root_device.type}: null; the threads are the CPU's"
            )
        if self.use_compile:
            raise ConfigError(key, n, f"accepted with model.compile: {self.use_compile}: null")
        if self._with_auxiliary_loss:
            name = type(self._with_auxiliary_loss[0]).__name__
            raise ConfigError(key, n, f"accepted with {name}, which has an auxiliary loss of all rows: null")
        if any(isinstance(module, nn.Dropout) and module.p for module in self.gpt.modules()):
            raise ConfigError(key, n, "accepted with dropout: null; threads would draw random numbers in any order")

    def _check_loss(self) -> None:
        name = type(self.loss).__name__
        if not self._takes_hidden:
            return contract.expect("model.loss", self.loss, "forward", "logits", "targets")
        contract.expect("model.loss", self.loss, "forward", "hidden", "head", "targets")
        if getattr(self.gpt.memory, "changes_logits", True):
            memory = type(self.gpt.memory).__name__
            raise ConfigError(
                "model.loss",
                name,
                f"accepted with the memory {memory}, which changes logits: losses that take logits",
            )

    @property
    def _takes_hidden(self) -> bool:
        return getattr(self.loss, "takes_hidden", False)

    def setup(self, stage: str) -> None:
        if self.use_compile and _can_compile(self.trainer.strategy.root_device):
            if self.use_compile == "blocks" or isinstance(self.trainer.strategy, FSDP):
                for block in self.gpt.blocks:  # only their forward, because fsdp's hooks on the call must not be traced
                    block.forward = torch.compile(block.forward)
            else:  # not torch.compile(self.gpt): that puts a prefix before every key of the state dict
                # Under ddp, torch would split it for every 25 MB of gradients, which ranks then exchange early. The
                # kernels become slower by more than the exchange takes if the GPUs are linked directly; for other
                # machines there is `blocks`.
                torch._dynamo.config.optimize_ddp = False
                self.gpt.compile()
            self.loss.compile()
            self.is_compiled = True
        self.use_compile = False  # once: Lightning calls this hook for every fit, validate and test
        data = getattr(self.trainer, "datamodule", None)
        token_bytes = getattr(data, "token_bytes", None)
        # Data of a user, and fit without a datamodule, may not declare it: then every token that can be a byte is one.
        counts_bytes = getattr(data, "counts_bytes", token_bytes is not None or self.gpt.vocab_size <= BYTES)
        if token_bytes is not None and not isinstance(data, TokenData):
            token_bytes = torch.as_tensor(token_bytes)
            if token_bytes.shape != (self.gpt.vocab_size,):
                accepted = f"accepted: one for each token of the network, ({self.gpt.vocab_size},); 0: no text"
                raise ConfigError("data.token_bytes", tuple(token_bytes.shape), accepted)
        self.val_bpb = BitsPerByte(token_bytes) if counts_bytes else None

    def prepare_in_pieces(self) -> Iterator[None]:
        """Runs the parts' work before the first step, such as filling a memory.

        TimeBudget iterates over it on its clock, and ends the run between two pieces of the work if they take too long.
        """
        self._is_prepared = False
        for part in self._parts_told["prepare_in_pieces"]:
            yield from part.prepare_in_pieces(self._data)
        self._is_prepared = True

    def on_train_start(self) -> None:
        if not self._is_prepared:  # without a TimeBudget, or if it has nothing left to train
            for _ in self.prepare_in_pieces():
                pass
        self._is_prepared = False  # Lightning may train the same module again
        self._tell_parts("on_train_start", self._data)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._tell_parts("on_train_batch_start", self._data)

    def on_validation_start(self) -> None:
        self._tell_parts("on_evaluation_start")

    def on_test_start(self) -> None:
        self._tell_parts("on_evaluation_start")

    def on_predict_start(self) -> None:
        self._tell_parts("on_evaluation_start")

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _tell_parts(self, event: str, *arguments: Any) -> None:
        """Calls the methods that parts declare for this moment of a run (parts/contract.py)."""
        for part in self._parts_told[event]:
            getattr(part, event)(*arguments)

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            shard(self.gpt, self.device_mesh, str(self.trainer.precision))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to logits (B, T, vocab_size)."""
        return self.gpt(tokens)

    def count_tokens(self, batch: Batch) -> int:
        """Number of tokens of a batch of this rank, for TimeBudget.

        Raises:
            ConfigError: The first batch of data that are not bytelm's cannot be trained on.
        """
        if not self._batch_is_checked:
            self._batch_is_checked = True
            if token_data(self.trainer) is None and type(self).training_step is LanguageModel.training_step:
                _check_batch(batch, self.gpt)
        return batch[0].numel()

    def count_flops(self, batch: Batch) -> int:
        """FLOPs of training on a batch of this rank, for TimeBudget; see GPT.flops_per_token."""
        seq_len = batch[0].shape[-1]
        if seq_len not in self._flops_per_token:
            self._flops_per_token[seq_len] = self.gpt.flops_per_token(seq_len)
        return batch[0].numel() * self._flops_per_token[seq_len]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.row_threads is None:
            return self._training_loss(*batch)
        params = [p for p in self.parameters() if p.requires_grad]
        return self.row_threads.loss(self._training_loss, *batch, params)

    def _training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if self._takes_hidden:
            loss = self.loss(self.gpt(inputs, to_logits=False), self.gpt.head, targets)
        else:
            loss = self.loss(self.gpt(inputs), targets)
        for part in self._with_auxiliary_loss:
            loss = loss + part.auxiliary_loss()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        _, targets = batch
        nats = self._nats(batch)
        self.val_loss.update(nats, targets)
        if self.val_bpb is not None:
            self.val_bpb.update(nats, targets)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Returns the tokens `targets`, (B, T), and the cost of each in `bits`, (B, T)."""
        _, targets = batch
        return {"targets": targets, "bits": self._nats(batch) / math.log(2)}

    def configure_optimizers(self) -> Optimizer:
        try:
            return self.optimizer(param_groups(self))
        except (AssertionError, RuntimeError, ValueError) as error:  # some optimizers use assertions
            raise rejected(self.optimizer, error) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.state.fn == "fit":
            states = checkpoint.get("optimizer_states", [])
            checkpoint["optimizer_states"] = [regroup(state, self) for state in states]

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips with torch.nn.utils, for every optimizer and precision.

        Lightning's own clipping rejects fused optimizers under mixed precision, because under a gradient scaler they
        unscale inside the step. GradScaler supports unscaling here, before clipping.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        # The optimizer's own list: traversing the module tree takes a quarter of a millisecond.
        groups = (group for group in optimizer.param_groups if group.get("clip", True))
        params = [param for group in groups for param in group["params"]]
        self._grad_norm = None
        if not gradient_clip_val:
            return
        self._grad_norm = self._norm_of(params)
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(params, gradient_clip_val)
        else:
            nn.utils.clip_grads_with_norm_(params, gradient_clip_val, self._grad_norm)

    def on_validation_model_zero_grad(self) -> None:
        self._grad_norm = self.grad_norm()  # of the last step; TrainLog asks for it when the validation begins
        super().on_validation_model_zero_grad()

    def grad_norm(self) -> Tensor:
        """Norm of the last step's gradients before clipping, (), without those that are not clipped."""
        if self._grad_norm is not None:
            return self._grad_norm
        groups = (group for group in param_groups(self) if group.get("clip", True))
        return self._norm_of([param for group in groups for param in group["params"]])

    def _norm_of(self, params: Sequence[Tensor]) -> Tensor:
        norm = nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        strategy: Any = None if self._trainer is None else self.trainer.strategy
        # With some strategies a rank has only some of the gradients.
        return strategy.total_norm(norm) if hasattr(strategy, "total_norm") else norm

    def _nats(self, batch: Batch) -> Tensor:
        """Returns the plain cross-entropy of each target in nats, (B, T), whatever the training loss is."""
        inputs, targets = batch
        # Not compiled: compiling a graph for each batch size would take more time than it saves.
        with torch.compiler.set_stance("force_eager") if self.is_compiled else nullcontext():
            logits = self.gpt(inputs)
        nats = [
            F.cross_entropy(some.float(), answers, reduction="none")
            for some, answers in zip(
                logits.flatten(0, 1).split(SCORED_AT_ONCE), targets.flatten().split(SCORED_AT_ONCE), strict=True
            )
        ]
        return torch.cat(nats).view_as(targets)

    def _log_scores(self, split: str) -> None:
        self.log(f"{split}/loss", self.val_loss)
        if self.val_bpb is not None:
            self.log(f"{split}/bpb", self.val_bpb)


def _can_compile(device: torch.device) -> bool:
    # On the CPU, torch.compile generates C++, and fails in the middle of a run if the machine has no compiler for it.
    if device.type != "cpu" or any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++", "cl")):
        return True
    warnings.warn("model.compile: no C++ compiler found (g++, clang++), so the network runs uncompiled", stacklevel=2)
    return False


def _check_batch(batch: Any, gpt: GPT) -> None:
    """Checks a batch of data that are not TokenData, which are checked before a run.

    Raises:
        ConfigError: It is not a pair of token ids that the network takes.
    """
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(each, Tensor) for each in batch)
    if not is_pair or batch[0].dim() != 2 or batch[0].shape != batch[1].shape or batch[1].dtype != torch.long:
        accepted = "accepted: a pair of inputs and targets, token ids, each (B, T), the targets int64"
        raise ConfigError("data", type(batch).__name__, f"a batch is {_described(batch)}; {accepted}")
    seq_len, largest = batch[0].shape[1], int(max(each.max() for each in batch))
    if seq_len > gpt.max_seq_len:
        raise ConfigError("data", seq_len, f"rows are longer than max_seq_len; accepted: up to {gpt.max_seq_len}")
    if largest >= gpt.vocab_size:
        raise ConfigError(
            "data", largest, f"a token id is beyond the network's vocab_size; accepted: below {gpt.vocab_size}"
        )


def _described(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, tuple | list):
        return f"({', '.join(map(_described, batch))})"
    return f"a mapping of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
