"""FP8: mixed precision with 8-bit matrix products in the blocks, by torchao.

    --trainer.plugins bytelm.precision.FP8

Only the products change. Weights, gradients and the optimizer stay in float32, and checkpoints are the same as without
FP8.
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

CAPABILITY = (8, 9)  # compute capability of the first GPUs with 8-bit products
MULTIPLE = 16  # sizes must be multiples of this
FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


class FP8(MixedPrecision):
    """bf16 autocast, with float8 products in the blocks' linear layers (Micikevicius et al. 2022, arXiv:2209.05433).

    Before a product both factors are scaled to float8's range and rounded: inputs, weights and gradients, in all three
    products of a layer's forward and backward pass. The head, the embeddings, and layers with a size that is not a
    multiple of 16 stay in bf16. FP8 is faster if torch.compile fuses scaling and rounding and the matrices are large.

    Args:
        recipe: The scope of a scale. `tensorwise`: one scale a tensor, the fastest; `rowwise`: one scale a row;
            `rowwise_with_gw_hp`: one scale a row, with gradients of weights in bf16, the most exact.
        gradients: Format of the gradients. `e4m3`: that of inputs and weights, with three bits of mantissa; `e5m2`: two
            bits, and the range of float16. Default: the recipe's, which is `e5m2` for `tensorwise` and `e4m3` for
            the others.
        emulate: Whether to round to float8 but multiply in higher precision, which works on any device; for tests.

    Attributes:
        label: Name of the precision in the run's record.

    Raises:
        ConfigError: torchao is not installed, or there is no GPU of compute capability 8.9.
    """

    def __init__(
        self,
        recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] = "tensorwise",
        gradients: Literal["e4m3", "e5m2"] | None = None,
        emulate: bool = False,
    ) -> None:
        has_gpu = torch.cuda.is_available()
        if not emulate and not (has_gpu and torch.cuda.get_device_capability() >= CAPABILITY):
            found = f"this one is {torch.cuda.get_device_name()}" if has_gpu else "there is none"
            raise ConfigError(
                "trainer.plugins", "FP8", f"it needs a GPU of compute capability 8.9 or higher (L4, H100), and {found}"
            )
        super().__init__("bf16-mixed", "cuda" if has_gpu else "cpu")
        self.config = _config(recipe, gradients, emulate)
        # torchao casts inputs as the autocast of GPUs says, not that of CPUs. There, the gradient of a weight is the
        # product of a bf16 gradient and a float32 input, which fails unless both are converted to float8.
        self._casts_inputs = emulate and recipe == "rowwise_with_gw_hp" and not has_gpu
        self.label = f"fp8-{recipe}"

    def check(self, strategy: Strategy) -> None:
        """Rejects strategies that FP8 does not support.

        Raises:
            ConfigError: The strategy shards the model, whose layers then contain parts of weights.
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
        if self._casts_inputs:
            for layer in module.gpt.blocks.modules():
                if type(layer).__name__ == "Float8Linear" and not layer._forward_pre_hooks:
                    layer.register_forward_pre_hook(_cast_input)
        for loop in (module.trainer.validate_loop, module.trainer.test_loop, module.trainer.predict_loop):
            loop.inference_mode = False  # torchao's tensors cannot be cast under inference mode; no_grad works
        return module


def _config(recipe: str, gradients: str | None, emulate: bool) -> Any:
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of missing extensions that training does not need
    try:
        from torchao.float8 import Float8LinearConfig
    except ImportError as error:
        reason = f'it needs torchao ({error}); run pip install -e ".[fp8]"'
        raise ConfigError("trainer.plugins", "FP8", reason) from error
    # The number of tokens is a size of the product for a weight's gradient; it is padded if necessary.
    config = replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate, pad_inner_dim=True)
    if gradients is None:
        return config
    names = ("cast_config_grad_output", "cast_config_grad_output_for_grad_weight")
    return replace(config, **{name: replace(getattr(config, name), target_dtype=FORMATS[gradients]) for name in names})


def _cast_input(layer: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    (x,) = inputs
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _is_to_convert(module: nn.Module, name: str) -> bool:
    # Layers that are converted already, or have their own forward, are not changed.
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0
