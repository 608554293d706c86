"""The share of the machine's peak that training reaches, and the time of a step by part and by operator.

The peak is the highest speed of products of square matrices (Product). Training is measured in a run of a few dozen
steps (StepMeter), some of them under Lightning's profiler (PartTimer) and under torch's.
"""

import contextlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import profile
from torch.utils.benchmark import Timer
from tqdm import tqdm

from benchmarks.runs import build_cli
from bytelm.callbacks.header import device_name
from bytelm.callbacks.warm_up import wait_for_device
from bytelm.experiments.text_table import aligned

# Steps of the run, in this order.
WARM_UP_STEPS = 10
MEASURED_STEPS = 40  # twice: for the speed, and for the parts
PROFILED_STEPS = 5
DEVICE_WINDOW = 5  # steps between two readings of the clock, if a device runs behind the program
TOP_OPERATORS = 12

# Actions of Lightning's profiler, by the end of their names. Other actions belong to the action around them.
PART_OF_ACTION = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimizer",
}
REST = "rest"
PARTS = ("data", "forward", "backward", "optimizer", REST)

Shape = tuple[int, int, int]  # tokens, inputs and outputs of a linear layer
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SQUARES = (512, 2048)
DEVICE_SQUARES = (*SQUARES, 8192)
PRODUCTS = {"forward": "x @ w.T", "input gradient": "g @ w", "weight gradient": "g.T @ x"}
PRODUCT_SECONDS = 0.2  # time for which a product is repeated
PATIENCE = 5.0  # longest time of one product, in seconds


def peak(config: Path, overrides: Iterable[str] = ()) -> str:
    """Returns plain text: the machine's peak, the share that training reaches, and the time of a step by part."""
    training = measure_training(config, overrides)
    return peak_report(training, measure_products(training.device, training.linears))


@dataclass
class Training:
    """Measurements of a run.

    Attributes:
        device: The device.
        precision: Lightning's name of the precision.
        step_tokens: Tokens of a step.
        token_flops: FLOPs of training per token, as the network computes them.
        linears: Number of linear layers of each shape; tokens are those of a batch.
        batches: Batches that are accumulated into a step.
        step_seconds: Times of steps without further measurement.
        step_parts: Times of the parts of later steps, in seconds.
        profiled_seconds: Time of all profiled steps.
        operators: Calls in the profiled steps, and own seconds, of each operator, longest first.
    """

    device: torch.device
    precision: str
    step_tokens: int
    token_flops: int
    linears: Counter[Shape]
    batches: int
    step_seconds: list[float] = field(default_factory=list)
    step_parts: list[dict[str, float]] = field(default_factory=list)
    profiled_seconds: float = 0.0
    operators: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        return self.step_tokens / statistics.median(self.step_seconds)

    @property
    def gflops(self) -> float:
        """GFLOP/s of the network's computations."""
        return self.tokens_per_second * self.token_flops / 1e9

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part: means over the middle half of the steps, without outliers."""
        ranked = sorted(self.step_parts, key=lambda parts: sum(parts.values()))
        middle = ranked[len(ranked) // 4 : len(ranked) - len(ranked) // 4]
        return {part: statistics.mean(parts[part] for parts in middle) for part in PARTS}


def measure_training(config: Path, overrides: Iterable[str] = ()) -> Training:
    """Trains the config's model for a few dozen steps, as `fit` would."""
    # A limit that the steps never reach: the end must not affect the schedule or the readings of the clock.
    fixed = ["--time_budget.limit", "24h", "--trainer.devices", "1", "--trainer.limit_val_batches", "1"]
    quiet = ["--trainer.enable_progress_bar", "false", "--experiment", "peak"]
    cli = build_cli(config, *overrides, *fixed, *quiet)
    parts = PartTimer()
    meter = StepMeter(parts)
    cli.trainer.profiler = parts  # type: ignore[attr-defined]
    cli.trainer.callbacks.append(meter)  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(sys.stderr):  # the run's scores are not needed
        cli.trainer.fit(cli.model, cli.datamodule)
    return meter.training


class PartTimer(Profiler):
    """Sums the time of each part of a step, without the parts nested in it (backward in the optimizer's step).

    Lightning calls a profiler at the start and end of each action. Callbacks always count as the rest.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open = [REST]
        self._wait: Callable[[], None] | None = None  # None: the clock is stopped

    def begin(self, wait: Callable[[], None]) -> None:
        """Starts the clock.

        Args:
            wait: Waits for the device, which assigns the work of a part to that part.
        """
        self._wait = wait
        self._since = time.perf_counter()
        self._taken = dict.fromkeys(PARTS, 0.0)

    def split(self) -> dict[str, float]:
        """Seconds of each part since the last split."""
        self._add()
        taken, self._taken = self._taken, dict.fromkeys(PARTS, 0.0)
        return taken

    def end(self) -> None:
        """Stops the clock."""
        self._wait = None

    def start(self, action_name: str) -> None:
        part = PART_OF_ACTION.get(action_name.rpartition(".")[2], self._open[-1])
        if action_name.startswith("[Callback]"):
            part = REST
        if part != self._open[-1]:
            self._add()
        self._open.append(part)

    def stop(self, action_name: str) -> None:
        if self._open[-1] != self._open[-2]:
            self._add()
        self._open.pop()

    def _add(self) -> None:
        if self._wait is None:
            return
        self._wait()
        now = time.perf_counter()
        self._taken[self._open[-1]] += now - self._since
        self._since = now


class StepMeter(Callback):
    """Measures a run's speed, the parts of its steps and its operators, then ends it. The last callback.

    Args:
        parts: The run's profiler.
    """

    training: Training

    def __init__(self, parts: PartTimer) -> None:
        super().__init__()
        self._parts = parts
        self._steps = 0
        self._profile = profile()  # all available activities, including a GPU's

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar = tqdm(total=WARM_UP_STEPS + 2 * MEASURED_STEPS + PROFILED_STEPS, desc="steps", leave=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:
            return  # the step has further batches
        self._steps = trainer.global_step
        self._bar.update()
        step = self._steps - WARM_UP_STEPS
        if step == 0:
            self.training = describe(trainer, pl_module, batch[0])
        if 0 <= step <= MEASURED_STEPS:
            self._measure_speed(trainer, step)
        elif MEASURED_STEPS < step <= 2 * MEASURED_STEPS:
            self.training.step_parts.append(self._parts.split())
        if step == MEASURED_STEPS:
            self._parts.begin(lambda: wait_for_device(trainer))
        elif step == 2 * MEASURED_STEPS:
            self._parts.end()
            self._profile.start()
            self._since = time.perf_counter()
        elif step == 2 * MEASURED_STEPS + PROFILED_STEPS:
            self._end_profile(trainer)
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar.close()

    def _measure_speed(self, trainer: Trainer, step: int) -> None:
        # Waiting for a device after every step would stop the program from running ahead of it.
        window = 1 if trainer.strategy.root_device.type == "cpu" else DEVICE_WINDOW
        if step % window:
            return
        wait_for_device(trainer)
        now = time.perf_counter()
        if step:
            self.training.step_seconds.append((now - self._since) / window)
        self._since = now

    def _end_profile(self, trainer: Trainer) -> None:
        wait_for_device(trainer)
        self.training.profiled_seconds = time.perf_counter() - self._since
        self._profile.stop()
        # Kernels of a device are left out: their time is part of the operators that launched them.
        events = [event for event in self._profile.key_averages() if event.device_type == DeviceType.CPU]
        cpu = trainer.strategy.root_device.type == "cpu"
        taken = {
            event.key: (event.count, (event.self_cpu_time_total if cpu else event.self_device_time_total) / 1e6)
            for event in events
        }
        self.training.operators = dict(sorted(taken.items(), key=lambda item: -item[1][1]))


def describe(trainer: Trainer, model: LightningModule, inputs: torch.Tensor) -> Training:
    """Describes a run whose batches have such inputs, (B, T), before any measurement."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return Training(
        device=trainer.strategy.root_device,
        precision=str(trainer.precision),
        step_tokens=inputs.numel() * trainer.accumulate_grad_batches,
        token_flops=model.gpt.flops_per_token(inputs.shape[1]),  # type: ignore[operator, union-attr]
        linears=Counter((inputs.numel(), layer.in_features, layer.out_features) for layer in layers),
        batches=trainer.accumulate_grad_batches,
    )


@dataclass
class Product:
    """A matrix product and its speed.

    Attributes:
        shape: Shape of the linear layer.
        kind: Which of the layer's products it is, a key of PRODUCTS.
        layers: Number of layers of that shape in the network; 0 for a square product, which measures the peak.
        gflops: GFLOP/s by dtype; None if the device does not support the dtype or would take too long.
    """

    shape: Shape
    kind: str
    layers: int = 0
    gflops: dict[torch.dtype, float | None] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        tokens, inputs, outputs = self.shape
        return 2 * tokens * inputs * outputs


def measure_products(device: torch.device, linears: Counter[Shape]) -> list[Product]:
    """Measures square products, for the peak, and the products of linear layers, in each dtype."""
    sizes = SQUARES if device.type == "cpu" else DEVICE_SQUARES
    products = [Product((size, size, size), "forward") for size in sizes]
    products += [Product(shape, kind, layers) for shape, layers in linears.items() for kind in PRODUCTS]
    known = dict.fromkeys(DTYPES, float("inf"))  # speed of the last product; the smallest product comes first
    for product in tqdm(products, desc="products", leave=False):
        for dtype in DTYPES:
            too_long = product.flops / 1e9 / known[dtype] > PATIENCE  # emulated, as float16 is on most CPUs
            measured = None if too_long else product_gflops(product, dtype, device)
            product.gflops[dtype] = measured
            known[dtype] = measured or known[dtype]
    return products


def product_gflops(product: Product, dtype: torch.dtype, device: torch.device) -> float | None:
    """The highest GFLOP/s of a product; None if the device does not support the dtype."""
    tokens, inputs, outputs = product.shape
    sizes = {"x": (tokens, inputs), "w": (outputs, inputs), "g": (tokens, outputs)}
    matrices = {name: torch.randn(size, device=device).to(dtype) for name, size in sizes.items()}
    timer = Timer(PRODUCTS[product.kind], globals=matrices, num_threads=torch.get_num_threads())
    try:
        measured = timer.blocked_autorange(min_run_time=PRODUCT_SECONDS)
    except RuntimeError:
        return None
    return product.flops / 1e9 / min(measured.times)


def peaks(products: list[Product]) -> dict[torch.dtype, float]:
    """The highest speed of square products, GFLOP/s by supported dtype."""
    rates = {dtype: [p.gflops[dtype] or 0.0 for p in products if not p.layers] for dtype in DTYPES}
    return {dtype: max(of_dtype) for dtype, of_dtype in rates.items() if any(of_dtype)}


def peak_report(training: Training, products: list[Product]) -> str:
    """Returns plain text: the share of the peak that training reaches, and the time of a step by part."""
    threads = f", {torch.get_num_threads()} threads" if training.device.type == "cpu" else ""
    lines = [
        f"{device_name(training.device)}{threads}, torch {torch.__version__}, precision {training.precision}",
        "",
        product_table(products, training.batches),
        "",
        speed_table(training, peaks(products)),
        "",
        part_table(training.parts),
        "",
        operator_table(training),
    ]
    return "\n".join(lines)


def product_table(products: list[Product], batches: int) -> str:
    reached = peaks(products)
    dtypes = list(reached)
    rows = []
    for product in products:
        name = " x ".join(map(str, product.shape))
        name += f", {product.kind}, {product.layers} of them" if product.layers else ""
        rows.append([name, *(f"{rate:.1f}" if (rate := product.gflops[dtype]) else "-" for dtype in dtypes)])
    rows.append(["peak (of the squares)", *(f"{reached[dtype]:.1f}" for dtype in dtypes)])
    own = [product for product in products if product.layers]
    gflop = batches * sum(product.layers * product.flops for product in own) / 1e9
    seconds = {dtype: products_seconds(own, dtype, batches) for dtype in dtypes}
    rows.append(["the network's products of a step, ms", *(f"{1e3 * s:.2f}" if s else "-" for s in seconds.values())])
    shares = [f"{gflop / s / reached[dtype]:.1%}" if s else "-" for dtype, s in seconds.items()]
    rows.append(["the network's products, share of the peak", *shares])
    return aligned([["GFLOP/s: tokens x inputs x outputs", *(name_of(dtype) for dtype in dtypes)], *rows])


def products_seconds(products: list[Product], dtype: torch.dtype, batches: int) -> float | None:
    """Seconds of a step's products alone; None if one of them was not measured."""
    seconds = [p.layers * p.flops / 1e9 / rate for p in products if (rate := p.gflops[dtype])]
    return batches * sum(seconds) if len(seconds) == len(products) else None


def speed_table(training: Training, reached: dict[torch.dtype, float]) -> str:
    steps = training.step_seconds
    spread = f"{1e3 * min(steps):.2f} to {1e3 * max(steps):.2f}"
    rows = [
        ["tokens/s, median", f"{training.tokens_per_second:,.0f}"],
        [f"step, ms, median ({spread})", f"{1e3 * statistics.median(steps):.2f}"],
        ["FLOPs a token", f"{training.token_flops:,}"],
        ["model GFLOP/s", f"{training.gflops:.1f}"],
    ]
    shared = [dtype for dtype in (torch.float32, torch.bfloat16) if dtype in reached]
    rows += [[f"share of the {name_of(dtype)} peak", f"{training.gflops / reached[dtype]:.1%}"] for dtype in shared]
    return aligned([["training", ""], *rows])


def part_table(parts: dict[str, float]) -> str:
    total = sum(parts.values())
    names = {"optimizer": "optimizer (clipping, step, zero_grad)", REST: "rest (callbacks, Lightning)"}
    taken = {**{names.get(part, part): seconds for part, seconds in parts.items()}, "step": total}
    rows = [[name, f"{1e3 * seconds:.2f}", f"{seconds / total:.1%}"] for name, seconds in taken.items()]
    return aligned([["part of a step (mean of the middle half of the steps)", "ms", "share"], *rows])


def operator_table(training: Training) -> str:
    """The operators with the longest times. The profiler lengthens the step."""
    total = training.profiled_seconds
    taken = [(name[:60], f"{calls / PROFILED_STEPS:g}", s) for name, (calls, s) in training.operators.items()]
    others = sum(seconds for _, _, seconds in taken[TOP_OPERATORS:])
    idle = total - sum(seconds for _, _, seconds in taken)
    taken[TOP_OPERATORS:] = [("other operators", "", others), ("no operator", "", idle), ("step", "", total)]
    rows = [[name, calls, f"{1e3 * s / PROFILED_STEPS:.2f}", f"{s / total:.1%}"] for name, calls, s in taken]
    return aligned([["operator by own time, under torch.profiler", "calls", "ms", "share"], *rows])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
