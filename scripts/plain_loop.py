"""Trains a config in a plain PyTorch loop, as nanoGPT does; scripts/benchmark.py compares bytelm with it.

    python scripts/plain_loop.py 30s --config my.yaml [--key value …]
    torchrun --standalone --nproc_per_node 2 scripts/plain_loop.py 30s --config my.yaml \\
        --trainer.devices 2 --trainer.strategy ddp

The config determines the network, batches, optimizer, devices, clipping and accumulation. Supported precisions are
bf16-mixed and 32-true; torch.compile always compiles the whole network. There is no schedule, and the loop does not use
Lightning. Prints the speed as a line of JSON.
"""

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from bytelm.callbacks.throughput import peak_flops
from bytelm.cli import BytelmCLI, build
from bytelm.language_model import LanguageModel
from bytelm.units import Duration

WARM_UP_STEPS = 3  # compilation and first calls; bytelm's clock does not count them either


def main() -> None:
    seconds, *options = sys.argv[1:]
    del sys.argv[1:]  # LightningCLI warns if there are both args and sys.argv
    cli = build(options, run=False)
    device, ranks = cli.trainer.strategy.root_device, cli.trainer.world_size
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    result = PlainLoop(cli).run(Duration.parse(seconds).value)
    if cli.trainer.global_rank == 0:
        print(json.dumps(result))
    if ranks > 1:
        distributed.destroy_process_group()


class Network(nn.Module):
    """A network with its loss, as one module: torch.compile then makes one graph, and ddp wraps one module.

    Args:
        model: The model that contains both.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.gpt, self.loss = model.gpt, model.loss

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.gpt(inputs), targets)


class PlainLoop:
    """The training loop of one process: the only one, or one rank of several.

    Args:
        cli: The objects of the config, for this rank.
    """

    def __init__(self, cli: BytelmCLI) -> None:
        trainer, data = cli.trainer, cli.datamodule
        self.device, self.ranks = trainer.strategy.root_device, trainer.world_size
        self.accumulated, self.clip = trainer.accumulate_grad_batches, trainer.gradient_clip_val
        self.log_every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self.precision = str(trainer.precision)
        self.autocast = self.precision == "bf16-mixed"
        self.token_flops = cli.model.gpt.flops_per_token(data.seq_len)
        self.step_tokens = data.batch_size * data.seq_len * self.accumulated * self.ranks
        data.trainer = trainer  # it reads the rank from the trainer
        data.setup("fit")
        self.batches = iter(data.train_dataloader().loader)  # endless: the loop has no epochs
        self.network: nn.Module = Network(cli.model).to(self.device)
        self.optimizer = cli.model.configure_optimizers()
        if cli.model.use_compile:
            self.network.compile()
        if self.ranks > 1:
            self.network = DistributedDataParallel(self.network)

    def run(self, seconds: float) -> dict[str, Any]:
        """Trains for `seconds`; on several ranks up to `log_every` steps longer. All ranks take the same steps.

        Returns:
            Steps, time and speed of all ranks together, the mean loss of the ranks' last batches, and on GPUs the
            largest memory of a rank.
        """
        for _ in range(WARM_UP_STEPS):
            loss = self.step()
        self._wait()
        self._start, steps = time.perf_counter(), 0
        while self._elapsed() < seconds:
            for _ in range(1 if self.ranks == 1 else self.log_every):
                loss = self.step()
                steps += 1
                if self.device.type == "cpu" or steps % self.log_every == 0:
                    loss.item()  # on the CPU at every step, as in the challenge's script
        self._wait()
        taken = time.perf_counter() - self._start
        result = {
            "total_steps": steps,
            "training_time_secs": taken,
            "tokens_per_sec": steps * self.step_tokens / taken,
            "train_loss": self._over_ranks(loss.item(), distributed.ReduceOp.SUM) / self.ranks,
        }
        if peak := peak_flops(self.device, self.precision):
            result["mfu"] = result["tokens_per_sec"] * self.token_flops / (peak * self.ranks)
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**20
            result["peak_device_memory_mb"] = self._over_ranks(memory, distributed.ReduceOp.MAX)
        return result

    def step(self) -> Tensor:
        """Takes an optimizer step; returns this rank's loss of the last batch."""
        for batch in range(self.accumulated):
            if isinstance(self.network, DistributedDataParallel):  # ranks exchange gradients once a step
                self.network.require_backward_grad_sync = batch == self.accumulated - 1
            inputs, targets = map(self._to_device, next(self.batches))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                loss = self.network(inputs, targets)
            (loss / self.accumulated).backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _to_device(self, tokens: Tensor) -> Tensor:
        return tokens.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tokens

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _elapsed(self) -> float:
        """Seconds since the start by the clock of rank 0; all ranks therefore end at the same step."""
        seconds = time.perf_counter() - self._start
        if self.ranks == 1:
            return seconds
        shared = torch.tensor(seconds, device=self.device)
        distributed.broadcast(shared, src=0)
        return shared.item()

    def _over_ranks(self, value: float, operation: distributed.ReduceOp.RedOpType) -> float:
        if self.ranks == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        distributed.all_reduce(shared, operation)
        return shared.item()


if __name__ == "__main__":
    main()
