"""Notes of options that have no effect in a run, because of the value of another option.

A class declares such options of its own in the attribute `UNUSED_WITH`: by option, the other option, and the values of
that with which the first has no effect. `OF_TRAINING` of a class of data lists the options that only training uses. The
trainer's options are listed here.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pydoc import locate
from typing import Any

from jsonargparse._parameter_resolvers import get_signature_parameters

from bytelm.config.flat import classes_in
from bytelm.config.keys import KEYS
from bytelm.config.values import OFF, Condition

ATTRIBUTE = "UNUSED_WITH"
FALSE = (False,)  # null is the default of some options that are on
NOT_SCORED: Condition = ("trainer.limit_val_batches", (0, 0.0))
# Sections of a config, and options of the trainer, that have no effect with some values of another option.
_OF_A_RUN: dict[str, Condition] = {
    "checkpoint": ("trainer.enable_checkpointing", FALSE),
    "last_checkpoint": ("trainer.enable_checkpointing", FALSE),
    "samples": NOT_SCORED,
    "trainer.check_val_every_n_epoch": NOT_SCORED,
    "trainer.enable_autolog_hparams": ("trainer.logger", FALSE),
    "trainer.gradient_clip_algorithm": ("trainer.gradient_clip_val", OFF),
    "trainer.num_sanity_val_steps": NOT_SCORED,
    "trainer.val_check_interval": NOT_SCORED,
}
# Options of the trainer that others replace, unless these are off.
_REPLACED_BY = {
    "trainer.limit_train_batches": ("trainer.fast_dev_run", "trainer.overfit_batches"),
    "trainer.limit_val_batches": ("trainer.fast_dev_run", "trainer.overfit_batches"),
    **{
        f"trainer.{option}": ("trainer.fast_dev_run",)
        for option in ("overfit_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps")
    },
}
_OF_TRAINING = (
    *("accumulate_grad_batches", "check_val_every_n_epoch", "detect_anomaly", "enable_checkpointing"),
    *("enable_model_summary", "gradient_clip_algorithm", "gradient_clip_val", "limit_train_batches"),
    *("log_every_n_steps", "num_sanity_val_steps", "reload_dataloaders_every_n_epochs", "val_check_interval"),
)
# `validate`, `test` and `predict` use nothing of these.
TRAINING: tuple[str, ...] = (
    *("time_budget", "lr_schedule", "schedules", "checkpoint", "last_checkpoint", "divergence", "throughput"),
    *("samples", "model.optimizer", "model.loss", "model.row_threads"),
    *(f"trainer.{option}" for option in _OF_TRAINING),
)

# Options that some commands use.
_USED_BY: dict[str, tuple[str, ...]] = {
    "return_predictions": (),
    "trainer.limit_val_batches": ("fit", "validate"),
    "trainer.limit_test_batches": ("test",),
    "trainer.limit_predict_batches": ("predict",),
    "trainer.inference_mode": ("validate", "test", "predict"),  # Lightning's validations in training are under no_grad
}


def without_effect(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """Yields a note for each option of a run that differs from its default and has no effect.

    Args:
        config: The config, as plain values.
        defaults: The defaults of the trainer's options, of which those of bytelm differ from Lightning's.
    """
    for key, (other, values) in _OF_A_RUN.items():
        if _is_one_of(value := _at(config, other), values):
            yield from (f"{key} has no effect with {other} {_text(value)}" for key in _changed(config, key, defaults))
    for key, others in _REPLACED_BY.items():
        for other in (other for other in others if not _is_one_of(_at(config, other), OFF)):
            yield from (
                f"{key} has no effect with {other} {_text(_at(config, other))}"
                for key in _changed(config, key, defaults)
            )
    for key, cls in KEYS.items():
        if isinstance(section := config.get(key), Mapping):
            if "class_path" not in section:
                yield from of_class(locate(cls), section, key)
            for place, value in classes_in(section, key):
                if inspect.isclass(given := locate(value["class_path"])):
                    yield from of_class(given, value.get("init_args") or {}, place)


def of_training(options: Iterable[str], data: Any = None) -> list[str]:
    """Returns those of some options that have an effect only on training.

    Args:
        options: Keys as given on the command line.
        data: The class of the data.
    """
    keys = (*TRAINING, *(f"data.{option}" for option in getattr(data, "OF_TRAINING", ())))
    short = {option: f"{option.replace('.init_args.', '.')}." for option in options}
    return sorted(option for option in short for key in keys if short[option].startswith(f"{key}."))


def of_other_commands(options: Iterable[str], command: str) -> list[str]:
    """Returns those of some options that have no effect in a command, but in others.

    Args:
        options: Keys as given on the command line.
        command: The command.
    """
    return sorted(option for option in options if command not in _USED_BY.get(option, (command,)))


def of_object(made: Any, key: str) -> Iterator[str]:
    """Yields the notes of an object, as far as it stores its options.

    Args:
        made: The object.
        key: Its name in the notes.
    """
    cls: Any = type(made)
    known = _defaults(cls)
    options: dict[str, Any] = {}
    for option, (other, _) in _declared(cls).items():
        stored = getattr(made, option, known[option])
        if known[option] is None or isinstance(stored, type(known[option])):  # not a function of that name
            options |= {option: stored, other: getattr(made, other, known[other])}
    yield from of_class(cls, options, key)


def of_class(cls: Any, options: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yields the notes of a class with some options.

    Args:
        cls: The class.
        options: Its options, as plain values or as objects.
        key: Its name in the notes.
    """
    for option, (other, values) in _declared(cls).items():
        given, default = options.get(option), _defaults(cls).get(option)
        value = options.get(other, _defaults(cls).get(other))
        if option in options and not _is_one_of(given, (default,)) and _is_one_of(value, values):
            yield f"{key}.{option} has no effect with {key}.{other} {_text(value)}"


@cache
def _declared(cls: Any) -> dict[str, Condition]:
    """Returns what a class and its bases declare."""
    found: dict[str, Condition] = {}
    for owner in reversed(inspect.getmro(cls)):
        found |= vars(owner).get(ATTRIBUTE, {})
    return found


@cache
def _defaults(cls: Any) -> dict[str, Any]:
    return {parameter.name: parameter.default for parameter in get_signature_parameters(cls)}


def _changed(config: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> Iterator[str]:
    """Yields the options at or below a key that differ from their defaults."""
    section, _, option = key.partition(".")
    if option:
        known = _defaults(locate(KEYS[section])).get(option)
        if not _is_one_of(_at(config, key), (None, defaults.get(option, known))):
            yield key
    elif isinstance(options := config.get(section), Mapping):
        known = _defaults(locate(KEYS[section]))
        for name, value in options.items():
            if not _is_one_of(value, (known.get(name), defaults.get(f"{section}.{name}"))):
                yield f"{section}.{name}"


def _at(config: Mapping[str, Any], key: str) -> Any:
    section, _, option = key.partition(".")
    return (config.get(section) or {}).get(option)


def _is_one_of(value: Any, values: Iterable[Any]) -> bool:
    """Whether a plain value is one of some values, of which durations and tuples are other objects in a config."""
    return any(value is each or (str(value) == str(each) and value is not None) for each in values) or (
        isinstance(value, list) and any(isinstance(each, tuple) and [*each] == value for each in values)
    )


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
