"""FP8: mixed precision whose blocks multiply matrices in 8 bits, by torchao.

    --trainer.plugins bytelm.precision.FP8

Nothing but the products changes. Weights, gradients and the optimizer stay in float32, and checkpoints are those of the
network without it.
"""

import logging
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import Strategy
from torch import nn

from bytelm.errors import ConfigError
from bytelm.language_model import LanguageModel
from bytelm.strategies import FSDP

CAPABILITY = (8, 9)  # of the first GPUs that multiply in 8 bits
MULTIPLE = 16  # their kernels want sizes that are multiples of it


class FP8(MixedPrecision):
    """bf16 autocast, with float8 products in the blocks' linear layers (Micikevicius et al. 2022, arXiv:2209.05433).

    Before a product both factors are scaled to float8's range and rounded: inputs, weights and gradients, in all three
    products of a layer's forward and backward pass. The head, the embeddings, and layers with a size that is no
    multiple of 16 are left in bf16. Scaling and rounding are worth their time where torch.compile fuses them and
    matrices are large.

    Args:
        recipe: What has a scale of its own: `tensorwise`: a tensor, the fastest; `rowwise`: each row;
            `rowwise_with_gw_hp`: each row, and gradients of weights stay in bf16, the most exact.
        emulate: Whether to round to float8 but multiply in higher precision, which any device can; for tests.

    Attributes:
        label: What the run's record calls it.

    Raises:
        ConfigError: torchao is not installed, or there is no GPU of compute capability 8.9.
    """

    def __init__(
        self, recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] = "tensorwise", emulate: bool = False
    ) -> None:
        has_gpu = torch.cuda.is_available()
        if not emulate and not (has_gpu and torch.cuda.get_device_capability() >= CAPABILITY):
            found = f"this one is {torch.cuda.get_device_name()}" if has_gpu else "there is none"
            raise ConfigError(
                "trainer.plugins", "FP8", f"it needs a GPU of compute capability 8.9 or higher (L4, H100), and {found}"
            )
        super().__init__("bf16-mixed", "cuda" if has_gpu else "cpu")
        self.config = _config(recipe, emulate)
        self.label = f"fp8-{recipe}"

    def check(self, strategy: Strategy) -> None:
        """Finds what cannot be converted.

        Raises:
            ConfigError: The model is to be sharded: its layers then hold parts of weights.
        """
        if isinstance(strategy, FSDP):
            raise ConfigError("trainer.strategy", "fsdp", "accepted with FP8: auto, ddp")

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Converts the blocks' linear layers in place, before Lightning moves the model to its device.

        Raises:
            ConfigError: See `check`.
        """
        from torchao.float8 import convert_to_float8_training

        assert isinstance(module, LanguageModel)
        self.check(module.trainer.strategy)
        convert_to_float8_training(module.gpt.blocks, module_filter_fn=_is_to_convert, config=self.config)
        for loop in (module.trainer.validate_loop, module.trainer.test_loop, module.trainer.predict_loop):
            loop.inference_mode = False  # under which torchao's tensors cannot be cast; no_grad does as well
        return module


def _config(recipe: str, emulate: bool) -> Any:
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of missing extensions, which are not for training
    try:
        from torchao.float8 import Float8LinearConfig
    except ImportError as error:
        reason = f'it needs torchao ({error}); pip install -e ".[fp8]" brings it'
        raise ConfigError("trainer.plugins", "FP8", reason) from error
    # The tokens of a batch are a size, too, in the product for a weight's gradient; padded, where need be.
    return replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate, pad_inner_dim=True)


def _is_to_convert(module: nn.Module, name: str) -> bool:
    # By its forward: what has been converted, or computes something of its own, is left as it is.
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0
