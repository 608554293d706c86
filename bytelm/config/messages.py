"""Messages to users: notes, and jsonargparse's reports of an invalid config as one line (key, value, accepted values).

jsonargparse reports an error at each level of a nested value; users need the innermost key and the reason. Reports of
an unknown form are passed on unchanged. Tests compare the known forms with the installed version.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

from tqdm import tqdm

from bytelm.config import shipped
from bytelm.config.classes import (
    bases_for,
    bases_of,
    classes_of,
    concrete,
    key_of_class,
    keys_below,
    no_class,
    options_of,
    parameters_of,
    takes_class,
)
from bytelm.config.packages import UNAVAILABLE
from bytelm.config.renamed import RENAMED
from bytelm.config.suggestions import choices, closest, did_you_mean
from bytelm.config.synonyms import SYNONYMS
from bytelm.config.written import Written
from bytelm.system.invocation import typed_name
from bytelm.system.process import is_rank_zero
from bytelm.units import LIMITS, Unit, accepted_forms

NUMBERS = {
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number from 0",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number from 0",
    "ClosedUnitInterval": "a number from 0 to 1",
}
TYPES = {
    "NoneType": "null",
    "int": "a whole number",
    "float": "a number",
    "bool": "true, false",
    **dict.fromkeys(("list", "tuple", "Iterable"), "a list"),
    "timedelta": "a time like 0:30:00",
}
HINTS = {
    "trainer.precision": "8-bit layers are a plugin: --trainer.plugins bytelm.precision.FP8",
    "phases": "for example {Size: [14-*, 15-*]}",
    "curves": "for example [14-*, 15-*]",
    "reported": "for example {32-*: {val_bpb: 2.95}}",
    "effects": "for example {Rotary over learned positions: [24-*, 16-*]}",
    "spread_of": "for example [runs/seeds]",
}
# Units of the commands' durations that do not take all of them. A class declares those of its options (`UNITS`).
UNITS_OF_COMMANDS: dict[str, tuple[Unit, ...]] = {
    **dict.fromkeys(("limit", "time_budget.limit"), LIMITS),
    **dict.fromkeys(("total_time", "run_timeout", "within", "match_time"), ("seconds",)),
}
OF_YOURS = {"data": "; for your own text: --data Bytes --data.path FILE"}
EXAMPLES = {"monitor": "val/bpb"}  # values of required options
VALUES = {
    "config": "a YAML file, or a shipped config such as quickstart",
    "ckpt_path": "last, best, a checkpoint, or the folder of a run",
}
OTHERS = {"data": " of a subclass of TokenData; bytelm.fit(model=…, data=…) takes any LightningDataModule"}
NO_CLASS = r"must include a class_path|an import path or a subclass spec, but got None|'NoneType' is not iterable"
NOT_A_CLASS = r"is abstract$|Not a valid subclass of"
NULL = "Null is not accepted"  # message of bytelm's own parser
OPTIONS = "with options as {class_path: …, init_args: {…}}"


def note(text: str) -> None:
    """Prints a note that is not an error."""
    if is_rank_zero():
        tqdm.write(f"bytelm: note: {text}", file=sys.stderr)  # tqdm.write moves a progress bar out of the way


def clarify(
    message: str,
    roots: Mapping[str, type],
    nested: Iterable[type] = (),
    others: Iterable[str] = (),
    unlisted: Callable[[type], bool] = no_class,
    written: Written | None = None,
) -> str:
    """Makes one line from a report of jsonargparse.

    Args:
        message: The report.
        roots: The class of each top-level key.
        nested: Further classes whose constructors take other classes.
        others: Other options of the command line.
        unlisted: Whether a class is not suggested for keys of the trainer.
        written: What the user wrote; None if it is not known.

    Returns:
        `key: value …; accepted: …`, or the unchanged message if its form is unknown.
    """
    key, report = _innermost(message)
    nested = [*nested, *_loaded(re.findall(r"class_path='([\w.]+)'", message))]
    name = key.rpartition(".")[2]
    written = written or Written()
    yours = OF_YOURS.get(key, "")
    if key and (beside := written.beside_class(key)):
        place, of, option = beside
        return f"{place}.{option}: it belongs under init_args: {{class_path: {of}, init_args: {{{option}: …}}}}"

    def classes(given: str) -> str:
        if key.startswith("trainer.") and (home := key_of_class(given.rpartition(".")[2], roots)):
            return f"it is given with the key {home}"
        return _class_choices(name, given, roots, nested, unlisted if key.startswith("trainer.") else no_class)

    if match := re.search(r"^argument (?:\S*/)?--([\w.]+)\S*: expected (?:at least )?one argument", message):
        return _without_value(match[1], roots, written)
    if match := re.search(r"^unrecognized arguments: (\S+)", message):
        return _unknown_option(match[1], roots, others, written)
    if match := re.search(r"^(?:error: )?the following arguments are required: ([^\n]+)", message):
        return _missing(match[1].split(", "), roots, nested, written)
    if NULL in message:
        default = re.search(rf"{NULL}(.*)", message)
        accepted = classes("") if takes_class(name, roots, nested) else f"leave the key out for its default{default[1]}"  # type: ignore[index]
        return f"{key}: null is not accepted; {accepted}"
    if match := re.search(r"^Parser key \"config\": (.*): ('.*')$", message):
        return f"config: {match[2]} cannot be used; {match[1]}"
    if match := re.search(r"does not accept option '([^']+)'", message):
        return _unknown_key(match[1], roots, others, written)
    if match := re.search(r"^Unable to load config '([^\n]*)'", message, re.MULTILINE):
        key = name  # the report contains it twice
        if key == "model" and re.fullmatch(r"[\w.]*\.[A-Z]\w*", match[1]):
            own = "a LightningModule of your own is trained by a Trainer with TimeBudget among its callbacks"
            return f"model: {match[1]!r} cannot be used; it is bytelm's LanguageModel, and {own}"
        accepted = ", ".join(inspect.signature(roots[key]).parameters) if key in roots else "see --help"
        return f"{key}: {match[1]!r} is neither a mapping of options nor a file with one; accepted: {accepted}"
    if match := re.search(r"Option '([^']+)' is not accepted", report):
        key = _whole_key(message, match[1]) or key
        owner = _owner(report, match.end()) or "".join(
            re.findall(r"class_path '([\w.]+)'", report[: match.start()])[-1:]
        )
        options = options_of(cls := locate(owner), key, [*roots.values(), *nested])
        if match[1] in options:  # its value is not accepted
            return (
                f"{key}.{match[1]}: {_value_of_option(match[1], report)} is not accepted; {_accepted_by(cls, match[1])}"
            )
        if options or not any(cls in bases_of(each, name) for each in [*roots.values(), *nested]):
            return f"{key}.{match[1]}: unknown key; {_choices_of_option(match[1], key, owner, options, roots)}"
        return f"{key}: {_given(report)} does not name a class; {classes('')}, {OPTIONS}{yours}"
    if matches := re.findall(r"Not of type Duration: (.*?)\s?is not a duration; ", report):
        given = matches[-1]  # in a list, the last attempt is at its element
        given = given or "".join(re.findall(r"Given value: (.*)", report))
        given = re.sub(r"^NestedArg\(key='(.*)', val='?(.*?)'?\)$", r"{\1: \2}", given)
        accepted = accepted_forms(*_units_of(key, roots))
        if text := written.time_of_day(key, given):
            return f"{key}: {text} is not a duration (YAML reads it as {given}); {accepted}"
        return f"{key}: {given} is not a duration; {accepted}"
    if match := re.search(r"Not of type Size: (.*? is not an amount of memory; accepted: .*)", message):
        return f"{key}: {match[1]}"
    number = rf"Not of type ({'|'.join(NUMBERS)}): "
    if "'NestedArg'" in report and (match := re.search(r"Not of type (\w+)", report)) and match[1] in NUMBERS:
        return f"{key}: it has no keys below it; accepted: {NUMBERS[match[1]]}"  # `--model.gpt.n_layers.x 3`
    number += r"(?:invalid literal.*?: |could not.*?: |does not conform(?s:.*?)Given value: )?(\S+)"
    if match := re.search(number, report):
        given = _given(report) if match[2] in ("int()", "float()") else match[2]  # from `int() argument must be …`
        return f"{key}: {given} is not accepted; accepted: {NUMBERS[match[1]]}"
    if match := re.search(r"Expected a typing\.Literal\[(.*?)\]\. Got value: (\S+)", report):
        return f"{key}: {match[2]!r} is not accepted; accepted: {match[1]}"
    if match := re.search(r"Expected '([\w.]+)' to be a subclass of <class '(?:\w+\.)*(\w+)'>", report):
        return f"{key}: {match[1]!r} is not a subclass of {match[2]}; {classes('')}{OTHERS.get(key, '')}"
    if re.search(NO_CLASS, report):
        return f"{key}: {_given(report)} does not name a class; {classes('')}, {OPTIONS}{yours}"
    failed = r"callable class: (?P<reason>.+?)\. Got value: (?:Namespace\(class_path=')?(?P<path>[\w.]+)"
    failed += r"|Problem with given class_path '(?P<class>[\w.]+)':\s+(?P<why>(?!Parser key)\S.*)$"
    if match := re.search(failed, report, re.MULTILINE):
        path, reason = match["path"] or match["class"], match["reason"] or match["why"]
        if (unknown := re.match(r"unrecognized arguments: --([\w.]+)", reason)) and match["reason"]:
            owner = _owner(report, match.end("reason"))
            options = options_of(locate(owner), key, [*roots.values(), *nested])
            return f"{key}.{unknown[1]}: unknown key; {choices(unknown[1], options)}"
        other = r"Expected '[\w.]+' to be a function that returns <class '(?:\w+\.)*(\w+)'>\.?"
        reason = re.sub(other, r"it is neither such a class nor a function that is declared to return a \1", reason)
        if required := re.match(r"the following arguments are required: (\w+)", reason):
            example = EXAMPLES.get(required[1], "…")
            of = path.rpartition(".")[2]
            return (
                f"{key}.{required[1]}: {of} requires it: {{class_path: {of}, init_args: {{{required[1]}: {example}}}}}"
            )
        if path in RENAMED:
            return f"{key}: {path!r} cannot be used ({reason}); did you mean {RENAMED[path]}?"
        return f"{key}: {path!r} cannot be used ({reason}); {classes(path)}"
    if match := re.search(r"[Ii]mport path (?:([\w.]+) )?does not correspond to a subclass of (\w+)", report):
        given = match[1] or _given(report)
        home = key_of_class(given.rpartition(".")[2], roots) if key.startswith("trainer.") else None
        accepted = f"it is given with the key {home}" if home else classes("")
        return f"{key}: {given!r} is not a subclass of {match[2]}; {accepted}{OTHERS.get(key, '')}"
    if re.search(NOT_A_CLASS, report, re.MULTILINE):
        return f"{key}: {_given(report)} does not name a class; {classes('')}, {OPTIONS}{yours}"
    if match := re.search(
        r"(?:Expected a dot import path string|Unexpected import path format): (\S+?)(?:\. Got |\s|$)", report
    ):
        if key.startswith("trainer.") and (why := UNAVAILABLE.get(match[1])):
            return f"{key}: {match[1]!r} cannot be used; {why}"
        given = (written.text(key) or match[1]) if yours else match[1]  # not the content of a file
        if not takes_class(name, roots, nested) and (accepted := _types(report)):
            return f"{key}: {given!r} is not accepted; accepted: {accepted}"
        return f"{key}: {given!r} is not known; {classes(given)}{yours}"
    if yours and "Given value: " in report:  # the content of a file that was given
        return f"{key}: {written.text(key) or _given(report)!r} does not name a class; {classes('')}{yours}"
    match = re.search(r"Given value: NestedArg\(key='(\w+)', val='?(.*?)'?\)$", report)
    if match and match[1] == name:
        # An option of a class that may be null: the null of the class is not accepted by the option.
        accepted = _types(re.sub(r"^ {4}- Expected a <class 'NoneType'>$", "", report, flags=re.MULTILINE))
        return f"{key}: {match[2]!r} is not accepted; accepted: {accepted}" if accepted else message
    if "Given value: " in report and (accepted := _types(report)):
        hint = f"; {HINTS[key]}" if key in HINTS else ""
        return f"{key}: {_given(report)!r} is not accepted; accepted: {accepted}{hint}"
    if match := re.search(r"Expected a <class '(\w+)'>\. Got value: (.*?)(?:\. Got value|$)", report):
        return f"{key}: {match[2]!r} is not accepted; accepted: {TYPES.get(match[1], match[1])}"
    return message


def _units_of(key: str, roots: Mapping[str, type]) -> tuple[Unit, ...]:
    """Returns the units that a key for durations takes; empty if it takes all of them."""
    root, _, option = key.partition(".")
    return getattr(roots.get(root), "UNITS", {}).get(option) or UNITS_OF_COMMANDS.get(key, ())


def _without_value(key: str, roots: Mapping[str, type], written: Written) -> str:
    """Returns the message about an option without a value; one that begins with a hyphen looks like an option."""
    units = _units_of(key, roots)
    forms = accepted_forms(*units).removeprefix("accepted: ") if units else f"--{key} VALUE"
    accepted = VALUES.get(key.rpartition(".")[2], forms)
    if (given := written.option(key)) is not None and re.match(r"-[^-]", given):
        return f"{key}: {given!r} is not accepted; accepted: {accepted}"
    return f"{key}: its value is missing; accepted: {accepted}"


def _unknown_option(option: str, roots: Mapping[str, type], others: Iterable[str], written: Written) -> str:
    if not option.startswith("--"):
        named = did_you_mean(_named_by(option, [*roots, *others]))
        return f"{option!r} is not an option; {named}accepted: --key value, or --key=value"
    return _unknown_key(option.lstrip("-").partition("=")[0].removesuffix(".help"), roots, others, written)


def _named_by(text: str, options: Sequence[str]) -> list[str]:
    """Returns the option whose value is meant by a text that is given without its option, in a list."""
    if text.startswith("-"):
        return [f"-{text}"]
    if os.path.isdir(text) and "ckpt_path" in options:
        return [f"--ckpt_path {text}"]
    if "config" in options and (os.path.isfile(text) or text.endswith((".yaml", ".yml")) or shipped.find(text)):
        return [f"--config {text}"]
    return [f"--ckpt_path {text}"] if text.endswith(".ckpt") and "ckpt_path" in options else []


def _unknown_key(key: str, roots: Mapping[str, type], others: Iterable[str], written: Written) -> str:
    root, _, rest = key.partition(".")
    if root not in roots:
        listed = [*roots, *(["base"] if written.in_file else [])] if roots else [*others]
        return f"{root}: unknown key; {_choices_or_place(root, listed, key, roots, others)}"
    name, _, inner = rest.partition(".")
    options = inspect.signature(roots[root]).parameters
    if inner and name in options:
        return f"{key}: unknown key; {root}.{name} takes one value"
    return f"{root}.{name}: unknown key; {_choices_or_place(name, options, rest, {root: roots[root]})}"


def _choices_of_option(given: str, key: str, owner: str, options: Sequence[str], roots: Mapping[str, type]) -> str:
    """Returns the options of a class as `choices` does, or the name of another class at the key that has the option."""
    root, _, rest = key.partition(".")
    classes = concrete(roots[root]) if root in roots and not rest else ()
    ours = [cls for cls in classes if cls.__module__.startswith("bytelm.")]
    names = sorted({cls.__name__ for cls in ours if given in inspect.signature(cls).parameters})
    if not names:
        return choices(given, options) if options else f"{owner.rpartition('.')[2]} has no options"
    of = f"it is an option of {', '.join(names)} (--{key} {names[0]} --{key}.{given} …)"
    return f"{of}; accepted by {owner.rpartition('.')[2]}: {', '.join(options)}"


def _choices_or_place(
    given: str, accepted: Iterable[str], key: str, roots: Mapping[str, type], others: Iterable[str] = ()
) -> str:
    """Returns accepted names as `choices` does, with the keys that the given one may stand for.

    These are an accepted name that begins with it (`seed`: seed_everything) and a key that ends in it (`n_layers`:
    model.gpt.n_layers).

    Args:
        given: The unknown name.
        accepted: The accepted names.
        key: The key that begins with the unknown name.
        roots: The keys whose classes are searched.
        others: Names that may be meant, but are not listed.
    """
    accepted = list(accepted)
    name, _, rest = key.partition(".")
    # The names here of other programs' names come first: a class of few users may have an option of that name.
    theirs = SYNONYMS.get(name.lower(), ())  # autoresearch writes them in capital letters
    wanted = [".".join([each, *([rest] if rest else [])]) for each in (*theirs, name.lower())]
    ranked = [
        (rank, place) for place in keys_below(roots) for rank, each in enumerate(wanted) if place.endswith(f".{each}")
    ]
    places = [place for _, place in sorted(ranked, key=lambda found: (found[0], found[1].count(".")))][:1]
    meant = [each for each in SYNONYMS.get(given.lower(), ()) if each in accepted]
    meant = meant or closest(given, [each for each in (*accepted, *others) if each != given])
    if not meant and key == given:
        meant = [name for name in accepted if name.startswith(given)][:1]
    meant = [*meant, *places] if given not in [place.rpartition(".")[2] for place in places] else [*places, *meant]
    return f"{did_you_mean(meant)}accepted: {', '.join(accepted) or 'see --help'}"


def _missing(names: list[str], roots: Mapping[str, type], nested: Iterable[type], written: Written) -> str:
    rest = names[0].partition(".")[2]
    key = rest if rest.partition(".")[0] in roots else names[0].lstrip("-")  # `fit.data`
    name = key.rpartition(".")[2]
    accepted = _class_choices(name, "", roots, nested) if takes_class(name, roots, nested) else "see --help"
    given = written.option("ckpt_path")
    if given is not None and written.option("config") is None and roots:
        config = next((str(path) for path in sorted(Path(given).glob("**/config.yaml"))[-1:]), "of its run")
        return f"{key}: it is required; did you mean --config {config} --ckpt_path {given}?"
    where = f", in a --config for example (`{typed_name()} configs` lists the shipped ones)" if roots else ""
    return f"{key}: it is required{where}; {accepted}{OF_YOURS.get(key, '')}"


def _loaded(paths: Iterable[str]) -> Iterator[type]:
    """Returns the import paths that lead to classes in modules that are already imported."""
    for path in paths:
        module, _, name = path.rpartition(".")
        found = getattr(sys.modules.get(module), name, None)
        if inspect.isclass(found):
            yield found


def _whole_key(message: str, option: str) -> str:
    """Returns the key of the class whose option `--model.optimizer.groups.hidden.lr` gives; empty for other reports."""
    outer = re.search(r'^Parser key "([\w.]+)"', message)
    nested = re.search(rf"NestedArg\(key='([\w.]+?)(?:\.init_args)?\.{re.escape(option)}'", message)
    return f"{outer[1]}.{nested[1]}" if outer and nested else ""


def _innermost(message: str) -> tuple[str, str]:
    """Returns the innermost key that a report is about, and the part of the report about its value.

    If several types were tried, both are from the first type that has an inner key.
    """
    keys: list[str] = []
    deepest = -1
    report = message
    for match in re.finditer(r'^([ -]*).*?Parser key "([^"]+)"', message, re.MULTILINE):
        if len(match[1]) > deepest:
            keys.append(match[2])
            deepest = len(match[1])
            report = _indented(message[match.end() :], deepest)
    end = re.search(r"Given value: .*", report)
    return ".".join(keys), report[: end.end()] if end else report


def _indented(report: str, depth: int) -> str:
    """Returns the lines of a report before those about another class that was tried for the enclosing value."""
    end = re.search(rf"^ {{0,{max(depth - 4, 0)}}}- Problem with given class_path", report, re.MULTILINE)
    return report[: end.start()] if end else report


def _owner(message: str, start: int) -> str:
    """Returns the class whose options follow in `Got value: Namespace(…)`; empty if there is none.

    Args:
        message: The report.
        start: Position in the report to search from.
    """
    match = re.compile(r"\. Got value: Namespace\(").match(message, start)
    depth, at = 1, match.end() if match else len(message)
    while at < len(message) and depth:
        if depth == 1 and (found := re.compile(r"class_path='([\w.]+)'").match(message, at)):
            return found[1]
        depth += {"(": 1, ")": -1}.get(message[at], 0)
        at += 1
    return ""


def _given(message: str) -> str:
    """Returns the value that a report is about, as text."""
    values = re.findall(r"Given value: (.*?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    values += re.findall(r"Got value: (.*?)$", message, re.MULTILINE)
    value = values[0] if values else "null"
    if match := re.match(r"Namespace\(class_path='(?:\w+\.)*(\w+)'", value):
        return match[1]
    if match := re.fullmatch(r"NestedArg\(key='(.*)', val='?(.*?)'?\)", value):
        return f"{{{match[1]}: {match[2]}}}"
    return "null" if value == "None" else value


def _value_of_option(option: str, report: str) -> str:
    """Returns the value of a class's option in a report of it."""
    found = re.search(rf"\b{option}=('[^']*'|[^,)]+)", report)
    return found[1] if found else "its value"


def _accepted_by(cls: Any, option: str) -> str:
    """Returns the type of an option of a class, for the end of a message."""
    hint = inspect.signature(cls).parameters[option].annotation
    name = getattr(hint, "__name__", str(hint)).replace(" | None", ", null")
    return f"accepted: {TYPES.get(name, name)}"


def _types(message: str) -> str:
    """Returns the types and values that a report of a union lists."""
    literals = list(dict.fromkeys(re.findall(r"Literal\[(.*?)\]", message)))
    values = [value.strip(" '") for literal in literals for value in literal.split(",")]
    types = re.findall(r"(?:Expected a <class '(?:\w+\.)*|Not of type )(\w+)", message)
    if any(not literal.startswith("'") for literal in literals):  # if so, text is compared with integers first
        types = [name for name in types if name != "int"]
    if "str" in types and re.search(r"Given value type: <class '(?:int|float|bool)'>", message):
        types[types.index("str")] = "str (text that looks like a number needs quotes)"
    names = [*values, *(TYPES.get(name, name) for name in types)]
    return ", ".join(dict.fromkeys(names))


def _class_choices(
    name: str,
    given: str,
    roots: Mapping[str, type],
    nested: Iterable[type],
    unlisted: Callable[[type], bool] = no_class,
) -> str:
    nested = list(nested)
    names = {cls.__name__ for cls in classes_of(name, roots, nested, unlisted)}
    owners = [*roots.values(), *nested]
    options = [option for owner in owners for base in bases_for(owner, name, roots) for option in parameters_of(base)]
    if not names and options:  # only the base class exists: model.gpt
        return f"accepted: a mapping of {', '.join(options)}, or an import path"
    return choices(given, sorted(names)) + ", or an import path"
