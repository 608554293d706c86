"""Tasks (descriptions of runs) and plans (the tasks of a study)."""

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from optuna.trial import Trial

from bytelm.config import shipped
from bytelm.config.base import files_of
from bytelm.config.flat import flat
from bytelm.config.own_code import own_code
from bytelm.config.text import dump, read
from bytelm.errors import ConfigError
from bytelm.runs.folder import run_of

RANGE = {"low", "high", "log", "step"}
LONGEST_NAME = 120  # bytes of a folder's name
Point = tuple[tuple[str, str], ...]
"""Keys with their values, as on the command line."""
Sampler = Literal["grid", "random", "tpe", "gp"]
SEED = "seed_everything"
OF_SEEDS = "the runs have the seeds of --seeds; accepted: one of the two"
IN_SPACE = "the space has values of it; accepted: one of the two"
# Options of a run after `--` that the command itself sets, or that are no options of training.
_OF_COMMAND = {
    "experiment": "the study names the folders of its runs; accepted: --study",
    "ckpt_path": "an interrupted run is resumed from its own checkpoint; accepted: init_from, for other weights",
    **dict.fromkeys(("h", "help", "help_all", "print_config"), "it is an option of `fit` alone"),
}


@dataclass(frozen=True)
class Task:
    """A run as plain values; two equal tasks are the same run.

    Attributes:
        config: Config file.
        content: Hash of the contents of the configs, their bases and the user's own code; other contents are another
            run.
        options: Further options.
        seed: The seed; None for the config's.
        point: Values of the searched keys, as on the command line.
    """

    config: str
    content: str
    options: tuple[str, ...] = ()
    seed: int | None = None
    point: Point = ()

    @property
    def fit_options(self) -> list[str]:
        """The options of `python -m bytelm fit`."""
        options = ["--config", self.config, *self.options, *_options_of(self.point)]
        return options if self.seed is None else [*options, f"--{SEED}", str(self.seed)]

    @property
    def name(self) -> str:
        """Name of the experiment: the config's name, the searched values and the seed.

        The config of a run has the name of the run's experiment.
        """
        parts = [self._config_name, *(f"{key.rpartition('.')[2]}={value}" for key, value in self.point)]
        seed = "" if self.seed is None else f",seed={self.seed}"
        name = re.sub(r"[^\w.,=+-]+", "_", ",".join(parts)).encode()[: LONGEST_NAME - len(seed)]
        return name.decode(errors="ignore") + seed

    @property
    def _config_name(self) -> str:
        run = run_of(Path(self.config))
        return Path(self.config).stem if run is None else re.sub(r",seed=-?\d+", "", run.parent.name)

    def dump(self) -> str:
        """The task as text, which `load` reads."""
        return json.dumps(vars(self))

    @classmethod
    def load(cls, text: str) -> "Task":
        """Reads what `dump` returns."""
        values = json.loads(text)
        return cls(**{**values, "options": tuple(values["options"]), "point": tuple(map(tuple, values["point"]))})


@dataclass(frozen=True)
class Plan:
    """The runs of a study.

    Args:
        configs: Config files; each is an experiment.
        options: Further options, the same for all.
        seeds: Each experiment is run with each seed; None stands for the config's.
        space: For each searched key a list of values, or a range {low, high, log, step}. A search draws from a list of
            numbers as from a range, because near ones have near results.
        sampler: The method that chooses points of the space.

    Raises:
        ConfigError: The space is invalid.
    """

    configs: Sequence[str]
    options: Sequence[str] = ()
    seeds: Sequence[int | None] = (None,)
    space: Mapping[str, Any] | None = None
    sampler: Sampler = "grid"

    def __post_init__(self) -> None:
        for key, values in (self.space or {}).items():
            if reason := _OF_COMMAND.get(key):
                raise ConfigError(f"space.{key}", values, f"it has no effect in a space: {reason}")
            if isinstance(values, Mapping):
                self._check_range(f"space.{key}", dict(values))
            elif not isinstance(values, list) or not values:
                raise ConfigError(f"space.{key}", values, "accepted: a list of values, or {low: …, high: …}")
        space = self.space or {}
        chosen = dict.fromkeys(space, IN_SPACE)
        if any(seed is not None for seed in self.seeds):
            chosen[SEED] = OF_SEEDS
            if SEED in space:
                raise ConfigError(f"space.{SEED}", space[SEED], f"it has no effect: {chosen[SEED]}")
        check_options(self.options, chosen)
        if self.sampler != "grid" and not self.space:
            raise ConfigError("sampler", self.sampler, "it needs a space to draw from; accepted without one: grid")

    def _check_range(self, key: str, values: dict[str, Any]) -> None:
        numbers = [values.get("low"), values.get("high"), values.get("step", 1)]
        known = set(values) <= RANGE and isinstance(values.get("log", False), bool)
        if not known or not all(map(_is_number, numbers)):
            raise ConfigError(key, values, "accepted: {low: 1e-4, high: 1e-2}, optionally with log: true or a step")
        if values.get("step", 1) <= 0:
            raise ConfigError(key, values, "accepted: a step above 0")
        if values["low"] >= values["high"]:
            raise ConfigError(key, values, "accepted: a low that is below high")
        if values.get("log") and (values["low"] <= 0 or "step" in values):
            raise ConfigError(key, values, "accepted with log: true: a low above 0, and no step")
        if self.sampler == "grid":
            raise ConfigError(key, values, "a grid needs a list of values; a range needs --sampler random, tpe or gp")

    def grid(self) -> list[Task]:
        """All runs of a list or a grid, with the seeds last: each experiment is run once before any is repeated."""
        space = self.space or {}
        points = [tuple(zip(space, map(as_text, values), strict=True)) for values in itertools.product(*space.values())]
        return [self.task(config, seed, point) for seed in self.seeds for config in self.configs for point in points]

    def task(self, config: str, seed: int | None, point: Point) -> Task:
        """The task of one config, seed and point."""
        return Task(config, _content(config, self.options, point), tuple(self.options), seed, point)

    def draw(self, trial: Trial) -> tuple[str, Point]:
        """A config and a point of the space, chosen by the sampler."""
        config = self.configs[0]
        if len(self.configs) > 1:
            config = str(trial.suggest_categorical("config", list(self.configs)))
        point = []
        for key, values in (self.space or {}).items():
            if isinstance(values, list):
                choices = choices_of(values)
                if _is_ordered(values):
                    value: Any = choices[trial.suggest_int(key, 0, len(choices) - 1)]
                else:
                    value = trial.suggest_categorical(key, choices)
            elif all(isinstance(number, int) for number in values.values()):
                value = trial.suggest_int(key, **values)
            else:
                value = trial.suggest_float(key, **values)
                short = float(f"{value:.{12 if 'step' in values else 4}g}")
                value = short if values["low"] <= short <= values["high"] else value
            point.append((key, as_text(value)))
        return config, tuple(point)

    def own(self, config: str, resolved: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `draw` would have drawn for a config's own values; None if the space does not contain them all.

        Args:
            config: The config file.
            resolved: All its values.
        """
        values = flat(resolved)
        drawn: dict[str, Any] = {"config": config} if len(self.configs) > 1 else {}
        for key, choice in (self.space or {}).items():
            value = values.get(key)
            if isinstance(choice, list):
                choices = choices_of(choice)
                if (text := as_text(value)) not in choices:
                    return None
                drawn[key] = choices.index(text) if _is_ordered(choice) else text
            elif _is_number(value) and choice["low"] <= value <= choice["high"]:
                drawn[key] = value
            else:
                return None
        return drawn


def check_options(options: Sequence[str], chosen: Mapping[str, str]) -> None:
    """Rejects options of each run in whose place another value would be used.

    Args:
        options: Options of `python -m bytelm fit`.
        chosen: Keys that the command sets, with the reason and what is accepted.

    Raises:
        ConfigError: There is such an option.
    """
    for place, option in enumerate(options):
        key, is_joined, value = option.lstrip("-").partition("=")
        if option.startswith("-") and (reason := {**_OF_COMMAND, **chosen}.get(key)):
            following = options[place + 1] if place + 1 < len(options) else ""
            raise ConfigError(key, value if is_joined else following, f"it has no effect after --: {reason}")


def read_space(space: Any) -> Any:
    """A space; read from a YAML file if it is the file's name.

    Args:
        space: The space, or the name of a file.

    Raises:
        ConfigError: The file cannot be read.
    """
    if not isinstance(space, str):
        return space
    accepted = "accepted: a YAML file, or {key: [values]}"
    if space.startswith(("{", "[")):
        raise ConfigError("space", space, accepted)
    try:
        return read(Path(space).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("space", space, f"{error.strerror or error}; {accepted}") from error
    except ValueError as error:
        raise ConfigError("space", space, f"it is not valid YAML ({error})") from error


def as_text(value: Any) -> str:
    """A value as text for the command line."""
    return value if isinstance(value, str) else dump(value, in_one_line=True)


def choices_of(values: Sequence[Any]) -> list[str]:
    """The values of a list as text, without repetitions; numbers in ascending order."""
    values = sorted(values) if _is_ordered(values) else values
    return list(dict.fromkeys(as_text(value) for value in values))


def _is_ordered(values: Sequence[Any]) -> bool:
    return all(_is_number(value) for value in values)


def _options_of(point: Point) -> list[str]:
    """A point as options. A later option can replace a value: configs are first, and classes before their options."""

    def place(item: tuple[str, str]) -> tuple[bool, int]:
        return item[0] != "config", sum(item[0].startswith(f"{key}.") for key, _ in point)

    return [word for key, value in sorted(point, key=place) for word in (f"--{key}", value)]


def _configs_in(options: Sequence[str]) -> list[str]:
    """The config files that options name, in their order."""
    words = [word for option in options for word in (option.split("=", 1) if option.startswith("--") else [option])]
    given = [shipped.resolved(value) for key, value in itertools.pairwise(words) if key in ("-c", "--config")]
    return [config for config in given if os.path.isfile(config)]  # the others are the text of a config


def _content(config: str, options: Sequence[str], point: Point) -> str:
    """Hash of the contents of configs and their bases, independent of the order and style of the keys, and of own code.

    An invalid config also gets a hash; the check of the run reports the error.

    Args:
        config: The config file.
        options: Further options, which can name configs and classes too.
        point: Values of the searched keys, which can too.
    """
    try:
        configs = [config, *_configs_in([*options, *_options_of(point)])]
        contents: Any = [
            yaml.safe_load(file.read_text(encoding="utf-8")) for each in configs for file in files_of(each)
        ]
        # Without other configs, a base, and own code, the hash is that of earlier versions.
        text = json.dumps(contents[0] if len(contents) == 1 else contents, sort_keys=True, default=str)
        values = [option.partition("=")[2] if option.startswith("--") else option for option in options]
        if code := own_code([contents, values, [value for _, value in point]]):
            text += json.dumps(code)
    # PyYAML and json raise all of these for invalid values and keys.
    except (OSError, yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        text = str(error)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
