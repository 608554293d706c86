"""Targets of schedules: options of parameter groups, sizes of batches, options of parts. See schedules.py."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from bytelm.budget import Progress
from bytelm.config.suggestions import hint
from bytelm.errors import ConfigError
from bytelm.schedules import Schedule

Group = dict[str, Any]
GIVEN = "initial_"  # torch's own prefix for a group's initial values, which are in checkpoints: initial_lr
REAL = ("lr", "momentum", "weight_decay", "dampening")  # not integers, even if given as 0 or 1
NOT_NEGATIVE = ("lr", "momentum", "weight_decay", "eps")  # as torch's optimizers check their own arguments


@dataclass(frozen=True)
class GroupOption:
    """An option of a parameter group.

    Args:
        option: Its name.
        group: Name of the group.
        index: Number of the group. Loading a checkpoint replaces the group object.
    """

    option: str
    group: str
    index: int

    @property
    def tag(self) -> str:
        return f"{self.option}/{self.group}"


@dataclass(frozen=True)
class BatchSize:
    """The batch size or sequence length of training.

    Args:
        option: Its name, in the data and in their loader.
        given: The value in the config.
    """

    option: str
    given: int

    @property
    def tag(self) -> str:
        return f"data/{self.option}"


@dataclass(frozen=True)
class PartOption:
    """An option that a part of the network declares schedulable.

    Args:
        option: An attribute of the part.
        part: The part.
        where: The component of the part's path in the network that the target names, such as `attention`.
        given: The value in the config.
        is_own_name: Whether that is the last component, not a module around the part.
    """

    option: str
    part: nn.Module
    where: str
    given: Any
    is_own_name: bool

    @property
    def tag(self) -> str:
        return f"{self.where}/{self.option}"

    @property
    def is_property(self) -> bool:
        """Whether the part sets the option itself, for example in a tensor, rather than as a plain attribute."""
        return isinstance(getattr(type(self.part), self.option, None), property)

    def set(self, value: Any) -> None:
        """Sets the option, unless it already has this value."""
        if getattr(self.part, self.option) != value:
            setattr(self.part, self.option, value)


Place = GroupOption | BatchSize | PartOption


def groups_of(optimizers: Iterable[Optimizer]) -> list[Group]:
    """Returns the current parameter groups of all optimizers."""
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def read_option(group: Group, option: str) -> float:
    """Returns an option of a group, as a plain number."""
    value = _option(group, option)
    return value.item() if isinstance(value, Tensor) else value


def read_plain(group: Group, option: str) -> float | None:
    """Returns an option of a group that is no tensor, without a wait for a device; None: it is one."""
    value = _option(group, option)
    return None if isinstance(value, Tensor) else value


def write_option(group: Group, option: str, value: float) -> None:
    """Sets an option of a group. A tensor, which compiled and captured optimizers need, is changed in place."""
    if isinstance(now := _option(group, option), Tensor):
        now.fill_(value)
    elif _is_a_beta(group, option):
        group["betas"] = (value, *group["betas"][1:])
    else:
        group[option] = value


def _option(group: Group, option: str) -> Any:
    return group["betas"][0] if _is_a_beta(group, option) else group[option]


def _is_a_beta(group: Group, option: str) -> bool:
    """Returns whether an option is the first of the group's betas."""
    return option == "momentum" and "momentum" not in group


def assign(
    schedules: Mapping[str, Schedule], pl_module: LightningModule, data: Any, groups: Sequence[Group]
) -> dict[Place, Schedule]:
    """Returns the scheduled options, each with its schedule.

    Args:
        schedules: Schedules by target.
        pl_module: The module that is trained.
        data: The datamodule, if there is one.
        groups: All parameter groups.

    Raises:
        ConfigError: This run does not have a target, or a schedule cannot be applied to it.
    """
    targets = find_targets(pl_module, data, groups)
    assigned: dict[Place, tuple[str, Schedule]] = {}
    for target, schedule in sorted(schedules.items(), key=lambda item: item[0].count(".")):  # lr before lr.hidden
        if target not in targets:
            raise _rejected(target, schedule, _accepted(target, targets))
        places = targets[target]
        if "." not in target and schedule.is_absolute:
            places = [place for place in places if given_value(place, groups) != 0]
            if not places:
                raise _rejected(target, schedule, f"all groups have 0; accepted: with a group, {target}.<group>")
        for place in places:
            if place in assigned and isinstance(place, PartOption):
                raise _rejected(target, schedule, f"schedules.{assigned[place][0]} sets the same option; keep one")
            _check_kind(target, schedule, place, pl_module, groups)
            assigned[place] = (target, schedule)
    return {place: schedule for place, (_, schedule) in assigned.items()}


def find_targets(pl_module: LightningModule, data: Any, groups: Sequence[Group]) -> dict[str, list[Place]]:
    """Returns everything that can be scheduled, by target."""
    targets: dict[str, list[Place]] = {}
    for index, group in enumerate(groups):
        name = str(group.get("name", index))
        for option in sorted(_numbers(group)):
            for target in (option, f"{option}.{name}"):
                targets.setdefault(target, []).append(GroupOption(option, name, index))
    for option in getattr(data, "schedulable", ()):
        targets[f"data.{option}"] = [BatchSize(option, getattr(data, option))]
    for path, part in pl_module.named_modules():
        for option in getattr(type(part), "schedulable", ()):
            names = [name for name in (path or "model").split(".") if not name.isdigit()]
            for where in dict.fromkeys(names):
                targets.setdefault(f"{where}.{option}", []).append(
                    PartOption(option, part, where, getattr(part, option), where == names[-1])
                )
    return targets


def given_value(place: Place, groups: Sequence[Group]) -> Any:
    """Returns the value of an option without a schedule."""
    if isinstance(place, GroupOption):
        group = groups[place.index]
        return group.get(GIVEN + place.option, read_option(group, place.option))
    return place.given


def keep_given_values(places: Iterable[Place], groups: Sequence[Group], rates: Iterable[int]) -> None:
    """Stores the given values of scheduled options in groups, and restores the options without a schedule.

    Args:
        places: The scheduled options.
        groups: All parameter groups.
        rates: Numbers of the groups whose `initial_lr` an earlier schedule has stored. Elsewhere it may be torch's own.
    """
    scheduled = {(place.index, place.option) for place in places if isinstance(place, GroupOption)}
    for index, option in scheduled:
        groups[index].setdefault(GIVEN + option, read_option(groups[index], option))
    for index, group in enumerate(groups):  # groups of a checkpoint whose run had a schedule
        for option in _numbers(group) - (set() if index in rates else {"lr"}):
            if GIVEN + option in group and (index, option) not in scheduled:
                write_option(group, option, group.pop(GIVEN + option))


def apply(place: GroupOption | PartOption, schedule: Schedule, groups: Sequence[Group], progress: Progress) -> float:
    """Sets an option of a group or a part for the step that begins; returns the value.

    Raises:
        ConfigError: The option cannot have the value, such as NaN or a negative learning rate.
    """
    if isinstance(place, GroupOption):
        group = groups[place.index]
        value = schedule.value(group[GIVEN + place.option], progress)
        if not _is_usable(value, place.option):
            when = f"at progress {progress.fraction:.4f}"
            reason = f"it gives {value} {when}; {_usable(place.option)}"
            error = _rejected(f"{place.option}.{place.group}", schedule, reason)
            error.on_all_ranks = True  # all have the same progress
            raise error
        write_option(group, place.option, value)
    else:
        value = schedule.value(place.given, progress)
        place.set(value)
    return value


def _numbers(group: Group) -> set[str]:
    """Returns the options of a group that are numbers."""
    names = {
        name
        for name, value in group.items()
        if (isinstance(value, int | float) and not isinstance(value, bool))
        or (isinstance(value, Tensor) and value.numel() == 1)
    }
    return {name for name in names if not name.startswith(GIVEN)} | ({"momentum"} if "betas" in group else set())


def _check_kind(
    target: str, schedule: Schedule, place: Place, pl_module: LightningModule, groups: Sequence[Group]
) -> None:
    """Checks that a schedule's values are of the kind that an option takes."""
    given = given_value(place, groups)
    changes = schedule.changes(given)
    values = [] if changes is None else [value for _, value in changes]
    whole = all(isinstance(value, int) for value in values)
    if isinstance(place, BatchSize):
        if changes is None or not whole or min(values) < 1:
            shown = "values that are not known beforehand" if changes is None else values
            raise _rejected(target, schedule, f"it gives {shown}; accepted: Piecewise, of whole numbers above 0")
        most = getattr(getattr(pl_module, "gpt", None), "max_seq_len", None)
        if place.option == "seq_len" and most is not None and max(values) > most:
            raise _rejected(target, schedule, f"it gives {max(values)}; accepted: up to max_seq_len, which is {most}")
        return
    counted = isinstance(given, int) and not (isinstance(place, GroupOption) and place.option in REAL)
    if counted and (changes is None or not whole):
        raise _rejected(target, schedule, f"it gives fractions; accepted: Piecewise, of whole numbers, as {given} is")
    for value in schedule.reached(given) if isinstance(place, GroupOption) else ():
        if not _is_usable(value, place.option):
            raise _rejected(target, schedule, f"it gives {value}; {_usable(place.option)}")
    if isinstance(place, PartOption) and changes is None and not place.is_property and _is_compiled(pl_module):
        reason = "with model.compile each new value would be compiled during training; accepted: Piecewise"
        raise _rejected(target, schedule, reason)


def _is_usable(value: Any, option: str) -> bool:
    """Returns whether an option of a group can have a value of a schedule."""
    try:
        return math.isfinite(value) and (value >= 0 or option not in NOT_NEGATIVE)
    except TypeError:  # it is no number
        return False


def _usable(option: str) -> str:
    return f"accepted: finite numbers{' from 0' if option in NOT_NEGATIVE else ''}"


def _is_compiled(pl_module: LightningModule) -> bool:
    return bool(getattr(pl_module, "use_compile", False) or getattr(pl_module, "is_compiled", False))


def _accepted(target: str, targets: Mapping[str, Sequence[Place]]) -> str:
    """Returns the accepted targets, for the message about an unknown one."""
    options = [name for name, places in targets.items() if "." not in name]
    groups = dict.fromkeys(p.group for name in options for p in targets[name] if isinstance(p, GroupOption))
    others = [name for name, places in targets.items() if any(map(_is_usual_name, places))]
    of_groups = f"{', '.join(sorted(options))}, each also for one group ({', '.join(f'lr.{name}' for name in groups)})"
    return f"{hint(target, targets)}accepted here: {'; '.join([of_groups, *others])}"


def _is_usual_name(place: Place) -> bool:
    """Returns whether to show a target, among those that name the same option: for a part, the key in the config."""
    if isinstance(place, PartOption):
        return place.is_own_name
    return isinstance(place, BatchSize)


def _rejected(target: str, schedule: Schedule, accepted: str) -> ConfigError:
    return ConfigError(f"schedules.{target}", type(schedule).__name__, accepted)
