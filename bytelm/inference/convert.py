"""GPT-2's weights, from and to nanoGPT and Hugging Face.

    python -m bytelm import ckpt.pt model.ckpt                     nanoGPT's checkpoint, or a folder of Hugging Face's
    python -m bytelm export model.ckpt gpt2 --format huggingface

The three compute the same function and differ in names, in which way round a block's matrices lie (Hugging Face's are
(in, out)), in which biases there are, and in the GELU. Whatever is read becomes a `GPT2`, sizes and weights by bytelm's
names, and whatever is written is made from one. Dropout, which is a matter of training, is not carried over.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bytelm.config.command import CommandParser
from bytelm.errors import CheckpointError, ConfigError, StorageError
from bytelm.gpt import GPT
from bytelm.parts.attention import SDPA, Explicit, FlashAttention
from bytelm.parts.feedforward import GELU, FusedGELU
from bytelm.parts.norm import LayerNorm
from bytelm.parts.position import Learned
from bytelm.runs.checkpoints import Contents, read, reason
from bytelm.runs.checkpoints import write as write_checkpoint
from bytelm.system.files import replacing

Format = Literal["nanogpt", "huggingface"]

GPT2_TOKENS = 50_257  # of the tokenizer called gpt2, whose last one ends a text
GPT2_SIZES = (GPT2_TOKENS, 50_304)  # of networks over them: as many, or filled up to a multiple of 64
# Options that change nothing of what a trained network computes in float32.
OF_TRAINING = ("dropout", "init", "std", "residual_autocast")
ACTIVATIONS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}  # Hugging Face's names for GELU's kinds
# What else a config of Hugging Face's may say of how the network computes, and all that bytelm can follow.
HUGGINGFACE_CONSTANTS = {
    "model_type": "gpt2",
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
MASK = re.compile(r"\.attn\.(masked_)?bias$")  # the causal mask, which older versions of both keep with the weights


class Parameter(NamedTuple):
    """A tensor of a GPT-2.

    Attributes:
        ours: Its name in bytelm's GPT.
        theirs: Its name in nanoGPT and Hugging Face, without `transformer.`.
        shape: As in an nn.Linear, (out, in).
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]

    @property
    def is_conv1d(self) -> bool:
        """Whether Hugging Face has it the other way round, (in, out)."""
        return self.theirs.startswith("h.") and len(self.shape) == 2


@dataclass
class GPT2:
    """A GPT-2: bytelm's GPT as far as nanoGPT and Hugging Face can say the same.

    Attributes:
        d_model: Width of the residual stream.
        n_heads: Number of attention heads.
        n_layers: Number of blocks.
        d_ff: Width of the feed-forward's hidden layer.
        vocab_size: Number of tokens, with what they were padded by.
        max_seq_len: Longest sequence, in tokens.
        attention_bias: Whether the attention's projections have biases.
        feedforward_bias: Whether the feed-forward's projections have biases.
        norm_bias: Whether the normalisations have biases.
        approximate: GELU's, `none` or `tanh`.
        eps: Added to the variance by the normalisations.
        weights: Tensors by their names in bytelm's GPT, in float32.
    """

    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    vocab_size: int
    max_seq_len: int
    attention_bias: bool = True
    feedforward_bias: bool = True
    norm_bias: bool = True
    approximate: str = "none"
    eps: float = 1e-5
    weights: dict[str, Tensor] = field(default_factory=dict)

    def parameters(self) -> Iterator[Parameter]:
        """All tensors that a network of these sizes has, the tied head aside."""
        for ours, theirs, shape, bias in self._modules():
            yield Parameter(f"{ours}.weight", f"{theirs}.weight", shape)
            if bias:
                yield Parameter(f"{ours}.bias", f"{theirs}.bias", shape[:1])

    def _modules(self) -> Iterator[tuple[str, str, tuple[int, ...], bool]]:
        d_model, d_ff = self.d_model, self.d_ff
        yield "embedding", "wte", (self.vocab_size, d_model), False
        yield "position", "wpe", (self.max_seq_len, d_model), False
        for i in range(self.n_layers):
            for ours, theirs, shape, bias in (
                ("attention_norm", "ln_1", (d_model,), self.norm_bias),
                ("attention.qkv", "attn.c_attn", (3 * d_model, d_model), self.attention_bias),
                ("attention.out", "attn.c_proj", (d_model, d_model), self.attention_bias),
                ("feedforward_norm", "ln_2", (d_model,), self.norm_bias),
                ("feedforward.up", "mlp.c_fc", (d_ff, d_model), self.feedforward_bias),
                ("feedforward.down", "mlp.c_proj", (d_model, d_ff), self.feedforward_bias),
            ):
                yield f"blocks.{i}.{ours}", f"h.{i}.{theirs}", shape, bias
        yield "norm", "ln_f", (d_model,), self.norm_bias

    def model_config(self) -> dict[str, Any]:
        """The config of a LanguageModel with this network, all else as by default: plain values, as `fit` writes."""
        from bytelm.language_model import LanguageModel  # here, as it needs Lightning

        network = _part(
            GPT,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            d_ff=None if self.d_ff == 4 * self.d_model else self.d_ff,
            vocab_size=self.vocab_size,
            max_seq_len=self.max_seq_len,
            position=_part(Learned),
            attention=_part(SDPA, bias=self.attention_bias),
            feedforward=_part(GELU, bias=self.feedforward_bias, approximate=self.approximate),
            norm=_part(LayerNorm, bias=self.norm_bias, eps=self.eps),
        )
        parser = CommandParser()
        parser.add_class_arguments(LanguageModel, "model", fail_untyped=False)
        config = parser.parse_object({"model": {"gpt": network}})
        plain: dict[str, Any] = json.loads(parser.dump(config, skip_unset=False, format="json"))
        return plain["model"]


def import_weights(source: str, target: str, tokenizer: str | None = None) -> None:
    """Makes a checkpoint of bytelm's from one of nanoGPT's or a folder of Hugging Face's.

    Args:
        source: The checkpoint or the folder.
        target: The checkpoint to write; one that is there is replaced.
        tokenizer: What the network's tokens are, as for TokenShards; default gpt2, if the network has 50,257 or 50,304.
            Without one it can be scored on shards, but generate and evaluate refuse it.

    Raises:
        CheckpointError: The source is not there, damaged, or no GPT-2.
        ConfigError: A package is missing.
        StorageError: The target cannot be written.
    """
    path = Path(source)
    gpt2 = read_huggingface(path) if path.is_dir() else read_nanogpt(path)
    write_bytelm(gpt2, Path(target), tokenizer)


def export_weights(ckpt_path: str, target: str, format: Format) -> None:
    """Makes a checkpoint of nanoGPT's or a folder of Hugging Face's from a checkpoint of bytelm's.

    Args:
        ckpt_path: The checkpoint.
        target: The file (nanogpt) or folder (huggingface) to write; what is there is replaced.
        format: Whose; both read weights only, nanoGPT's lacks what it would need to train on.

    Raises:
        CheckpointError: The checkpoint is not there or damaged.
        ConfigError: The network is none that the format has, or a package is missing.
        StorageError: The target cannot be written.
    """
    write = {"nanogpt": write_nanogpt, "huggingface": write_huggingface}[format]
    write(read_bytelm(Path(ckpt_path)), Path(target))


def read_nanogpt(path: Path) -> GPT2:
    """Reads a checkpoint of nanoGPT's, compiled or not, without running code from it.

    Raises:
        CheckpointError: It is not there, damaged, or something else.
    """
    what = "accepted: nanoGPT's ckpt.pt, or a folder of Hugging Face's"
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} in it is not what was written")
        # Mapped: the optimizer's state, two thirds of the file, takes no memory.
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch.load raises whatever the damage makes of the file
        raise CheckpointError(f"{path} cannot be read ({reason(error)}); {what}") from error
    args, weights = (checkpoint.get(key) if isinstance(checkpoint, dict) else None for key in ("model_args", "model"))
    if not isinstance(args, dict) or not isinstance(weights, dict):
        raise CheckpointError(f"{path} lacks model_args or model; {what}")
    bias = bool(args.get("bias", True))  # checkpoints from before it was an option have none
    gpt2 = GPT2(
        d_model=_size(path, args, "n_embd"),
        n_heads=_size(path, args, "n_head"),
        n_layers=_size(path, args, "n_layer"),
        d_ff=4 * _size(path, args, "n_embd"),
        vocab_size=_size(path, args, "vocab_size"),
        max_seq_len=_size(path, args, "block_size"),
        attention_bias=bias,
        feedforward_bias=bias,
        norm_bias=bias,
    )
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in weights.items()}
    return _filled(gpt2, path, tensors, lambda parameter: f"transformer.{parameter.theirs}", "lm_head.weight")


def read_huggingface(folder: Path) -> GPT2:
    """Reads a folder with config.json and model.safetensors, whole or in shards.

    Raises:
        CheckpointError: One of them is not there, damaged, or not of a GPT-2.
        ConfigError: The package safetensors is missing.
    """
    path = folder / "config.json"
    config = _read_json(path)
    for key, constant in HUGGINGFACE_CONSTANTS.items():
        _accept(path, config, key, constant, [constant])
    activation = _accept(path, config, "activation_function", "gelu_new", list(ACTIVATIONS))
    eps = config.get("layer_norm_epsilon", 1e-5)
    if not isinstance(eps, float) or not eps > 0:
        raise CheckpointError(f"{path}: layer_norm_epsilon: {eps!r} cannot be used; accepted: a number above 0")
    gpt2 = GPT2(
        d_model=_size(path, config, "n_embd"),
        n_heads=_size(path, config, "n_head"),
        n_layers=_size(path, config, "n_layer"),
        d_ff=4 * _size(path, config, "n_embd") if config.get("n_inner") is None else _size(path, config, "n_inner"),
        vocab_size=_size(path, config, "vocab_size"),
        max_seq_len=_size(path, config, "n_positions"),
        approximate=ACTIVATIONS[activation],
        eps=eps,
    )
    tensors = {
        # The head has no prefix; what was saved without one has none anywhere.
        name if name == "lm_head.weight" else f"transformer.{name.removeprefix('transformer.')}": tensor
        for file in _safetensors_files(folder)
        for name, tensor in _read_safetensors(file).items()
    }
    return _filled(gpt2, folder, tensors, lambda parameter: f"transformer.{parameter.theirs}", "lm_head.weight", True)


def read_bytelm(path: Path) -> GPT2:
    """Reads a checkpoint of bytelm's.

    Raises:
        CheckpointError: It is not there, damaged, or its config and its weights are of different networks.
        ConfigError: The network has something that a GPT-2 has not.
    """
    checkpoint = read(path, map_location="cpu", check=True)
    try:
        network = Contents(checkpoint, path).config["model"]["gpt"]
        options = network["init_args"]
        attention, feedforward, norm = (
            options[part].get("init_args") or {} for part in ("attention", "feedforward", "norm")
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not tell its network's config; accepted: files like last.ckpt") from error
    d_model, n_heads = _size(path, options, "d_model"), _size(path, options, "n_heads")
    approximate = feedforward.get("approximate", "none")
    is_fused = options["feedforward"].get("class_path") == _part(FusedGELU)["class_path"]
    gpt2 = GPT2(
        d_model=d_model,
        n_heads=n_heads,
        n_layers=_size(path, options, "n_layers"),
        d_ff=4 * d_model if options.get("d_ff") is None else _size(path, options, "d_ff"),
        vocab_size=_size(path, options, "vocab_size"),
        max_seq_len=_size(path, options, "max_seq_len"),
        attention_bias=attention.get("bias", True),
        feedforward_bias=feedforward.get("bias", not is_fused),
        norm_bias=norm.get("bias", True),
        approximate="none" if approximate == "polynomial" else approximate,
        eps=norm.get("eps", 1e-5),
    )
    expected = gpt2.model_config()["gpt"]
    theirs = expected["init_args"]
    theirs["feedforward"]["init_args"]["approximate"] = approximate  # the polynomial computes what `none` does
    if is_fused:  # GELU without biases, by other kernels
        theirs["feedforward"] = _part(FusedGELU)
    theirs["d_ff"], theirs["attention"]["init_args"]["n_kv_heads"] = gpt2.d_ff, n_heads  # defaults, written out
    for alike in (Explicit, FlashAttention):  # SDPA's mathematics, written out or by other kernels
        if options["attention"].get("class_path") == _part(alike)["class_path"]:
            theirs["attention"]["class_path"] = options["attention"]["class_path"]
    _refuse_others(network, expected, "model.gpt")
    return _filled(
        gpt2, path, Contents(checkpoint, path).network, lambda parameter: f"gpt.{parameter.ours}", "gpt.head.weight"
    )


def write_bytelm(gpt2: GPT2, path: Path, tokenizer: str | None = None) -> None:
    """Writes a checkpoint of bytelm's: the weights, and the config that they need.

    Args:
        gpt2: The network.
        path: The checkpoint.
        tokenizer: What its tokens are; default gpt2, if it has 50,257 or 50,304.

    Raises:
        StorageError: It cannot be written.
    """
    if tokenizer is None and gpt2.vocab_size in GPT2_SIZES:
        tokenizer = "gpt2"
    tokens = GPT2_TOKENS if tokenizer == "gpt2" else gpt2.vocab_size
    data = {"tokenizer": tokenizer, "vocab_size": tokens, "seq_len": gpt2.max_seq_len}
    model = gpt2.model_config()
    state = {f"gpt.{name}": tensor for name, tensor in gpt2.weights.items()}
    checkpoint = {
        "pytorch-lightning_version": version("lightning"),
        "state_dict": {**state, "gpt.head.weight": gpt2.weights["embedding.weight"]},
        "hyper_parameters": {**model, "_instantiator": "lightning.pytorch.cli.instantiate_module"},
        "config": {
            "model": model,
            "data": {"class_path": "bytelm.data.shards.TokenShards", "init_args": data},
        },
    }
    write_checkpoint(checkpoint, path)


def write_nanogpt(gpt2: GPT2, path: Path) -> None:
    """Writes a checkpoint of nanoGPT's, without an optimizer's state.

    Raises:
        ConfigError: The network has something that nanoGPT's has not.
        StorageError: It cannot be written.
    """
    bias = gpt2.attention_bias
    for key, value, accepted in (
        ("d_ff", gpt2.d_ff, 4 * gpt2.d_model),
        ("feedforward.approximate", gpt2.approximate, "none"),
        ("feedforward.bias", gpt2.feedforward_bias, bias),
        ("norm.bias", gpt2.norm_bias, bias),
        ("norm.eps", gpt2.eps, 1e-5),
    ):
        if value != accepted:
            others = f", as attention.bias is {bias}" if key.endswith(".bias") else ""
            raise ConfigError(f"model.gpt.{key}", value, f"accepted by nanoGPT: {accepted!r}{others}")
    weights = {f"transformer.{p.theirs}": gpt2.weights[p.ours] for p in gpt2.parameters()}
    args = {
        "n_layer": gpt2.n_layers,
        "n_head": gpt2.n_heads,
        "n_embd": gpt2.d_model,
        "block_size": gpt2.max_seq_len,
        "bias": bias,
        "vocab_size": gpt2.vocab_size,
        "dropout": 0.0,
    }
    checkpoint = {"model": {**weights, "lm_head.weight": gpt2.weights["embedding.weight"]}, "model_args": args}
    write_checkpoint(checkpoint, path)


def write_huggingface(gpt2: GPT2, folder: Path) -> None:
    """Writes a folder that transformers.GPT2LMHeadModel.from_pretrained loads; biases that there are none of are zeros.

    Raises:
        ConfigError: The package safetensors is missing.
        StorageError: It cannot be written.
    """
    complete = replace(gpt2, attention_bias=True, feedforward_bias=True, norm_bias=True)
    tensors = {}
    for parameter in complete.parameters():
        tensor = gpt2.weights.get(parameter.ours)
        tensor = torch.zeros(parameter.shape) if tensor is None else tensor
        tensors[f"transformer.{parameter.theirs}"] = (tensor.t() if parameter.is_conv1d else tensor).contiguous()
    end_of_text = GPT2_TOKENS - 1 if gpt2.vocab_size in GPT2_SIZES else None
    config = {
        "architectures": ["GPT2LMHeadModel"],
        **HUGGINGFACE_CONSTANTS,
        "n_embd": gpt2.d_model,
        "n_head": gpt2.n_heads,
        "n_layer": gpt2.n_layers,
        "n_inner": gpt2.d_ff,
        "vocab_size": gpt2.vocab_size,
        "n_positions": gpt2.max_seq_len,
        "activation_function": {"tanh": "gelu_new", "none": "gelu"}[gpt2.approximate],
        "layer_norm_epsilon": gpt2.eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }
    safetensors = _import_safetensors()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "model.safetensors") as partial:
            safetensors.torch.save_file(tensors, partial, metadata={"format": "pt"})
        with replacing(folder / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"{folder}: the model could not be written ({reason(error)})") from error


def _part(cls: type, **options: Any) -> dict[str, Any]:
    return {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": options}


def _filled(
    gpt2: GPT2,
    source: Path,
    tensors: Mapping[str, Any],
    name_of: Callable[[Parameter], str],
    head: str,
    conv1d: bool = False,
) -> GPT2:
    """A GPT-2 with its weights.

    Args:
        gpt2: The same without.
        source: Where they come from, for messages.
        tensors: What was found there.
        name_of: How the source names a tensor.
        head: How it names the head's weights.
        conv1d: Whether matrices of blocks are (in, out) there.

    Raises:
        CheckpointError: Something is missing, is left over, has another shape, or is not tied.
    """
    if gpt2.d_model % gpt2.n_heads:
        raise CheckpointError(f"{source}: {gpt2.n_heads} heads do not divide the width, which is {gpt2.d_model}")
    left = {name: tensor for name, tensor in tensors.items() if not MASK.search(name)}
    weights = {}
    for parameter in gpt2.parameters():
        name, turned = name_of(parameter), conv1d and parameter.is_conv1d
        shape = parameter.shape[::-1] if turned else parameter.shape
        tensor = left.pop(name, None)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source} lacks {name}")
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{source}: {name} has the shape {tuple(tensor.shape)}, where its config asks for {shape}"
            )
        weights[parameter.ours] = (tensor.t() if turned else tensor).float().contiguous()
    tied = left.pop(head, weights["embedding.weight"])
    if not isinstance(tied, Tensor) or not torch.equal(tied.float(), weights["embedding.weight"]):
        raise CheckpointError(f"{source}: {head} is not the token embedding; accepted: a head that is tied to it")
    if left:
        raise CheckpointError(f"{source}: {min(left)} is nothing that a GPT-2 of its config has")
    return replace(gpt2, weights=weights)


def _refuse_others(ours: Mapping[str, Any], expected: Mapping[str, Any], key: str) -> None:
    """Raises ConfigError for the first option by which a network differs from the GPT-2 of its sizes."""
    for name, value in ours.items():
        if value is None or name in OF_TRAINING:
            continue
        inner = key if name in ("class_path", "init_args") else f"{key}.{name}"
        if isinstance(value, Mapping) and isinstance(expected.get(name), Mapping):
            _refuse_others(value, expected[name], inner)
        elif value != expected.get(name):
            raise ConfigError(inner, value, f"accepted, as GPT-2 has nothing else: {expected.get(name)!r}")


def _accept(path: Path, config: Mapping[str, Any], key: str, default: Any, accepted: Sequence[Any]) -> Any:
    value = config.get(key, default)
    if value not in accepted:
        raise CheckpointError(f"{path}: {key}: {value!r} cannot be used; accepted: {', '.join(map(repr, accepted))}")
    return value


def _size(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{path}: {key}: {value!r} cannot be used; accepted: a whole number above 0")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no keys and values")
    except (OSError, ValueError) as error:
        accepted = "accepted: a folder with config.json and model.safetensors"
        raise CheckpointError(f"{path} cannot be read ({reason(error)}); {accepted}") from error
    return values


def _safetensors_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: one, or those that an index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return [folder / "model.safetensors"]
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise CheckpointError(f"{index} lacks weight_map")
    return [folder / str(shard) for shard in sorted(set(shards.values()))]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = _import_safetensors()
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        accepted = "accepted: weights as safetensors"
        raise CheckpointError(f"{path} cannot be read ({reason(error)}); {accepted}") from error
    return tensors


def _import_safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        brings = 'pip install -e ".[tokens]" brings it'
        raise ConfigError("huggingface", error.name, f"safetensors is not installed; {brings}") from error
    return safetensors


def main_import(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: What follows `python -m bytelm import`.
    """
    parser = CommandParser("import", description="Makes a checkpoint of GPT-2 weights from nanoGPT or Hugging Face.")
    parser.add_argument("source", help="nanoGPT's ckpt.pt, or a folder with config.json and model.safetensors.")
    parser.add_argument("target", help="The checkpoint to write, such as model.ckpt.")
    parser.add_function_arguments(import_weights, skip={"source", "target"})
    given = vars(parser.parse_args(args))
    import_weights(**given)
    print(f"checkpoint: {given['target']}")


def main_export(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: What follows `python -m bytelm export`.
    """
    parser = CommandParser("export", description="Makes GPT-2 weights for nanoGPT or Hugging Face from a checkpoint.")
    parser.add_argument("ckpt_path", help="A checkpoint, such as runs/…/checkpoints/best.ckpt.")
    parser.add_argument("target", help="The file (nanogpt) or the folder (huggingface) to write.")
    parser.add_function_arguments(export_weights, skip={"ckpt_path", "target"})
    given = vars(parser.parse_args(args))
    export_weights(**given)
    print(f"{given['format']}: {given['target']}")
