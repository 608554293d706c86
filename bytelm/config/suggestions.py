"""The names that a user may have meant by an unknown one, for messages: `did you mean n_layers? accepted: …`."""

from collections.abc import Iterable
from difflib import get_close_matches

from bytelm.config.synonyms import SYNONYMS


def closest(given: str, accepted: Iterable[str]) -> list[str]:
    """Returns the name that is most similar to a given one, in a list; the same name in other letters comes first."""
    names = list(accepted)
    same = [each for each in names if each.lower() == given.lower()]
    return same[:1] or get_close_matches(given, names, n=1)


def did_you_mean(names: Iterable[str]) -> str:
    """Returns the question whether one of some names was meant, for the beginning of a hint; empty if there is none."""
    text = " or ".join(names)
    return f"did you mean {text}? " if text else ""


def hint(given: str, accepted: Iterable[str]) -> str:
    """Returns `did_you_mean` for the accepted name that is most similar to a given one."""
    return did_you_mean(closest(given, accepted))


def choices(given: str, accepted: Iterable[str]) -> str:
    """Returns the accepted names for the end of a message, after the one that a given name may mean."""
    names = list(accepted)
    meant = [each for each in SYNONYMS.get(given, ()) if each in names][:1] or closest(given, names)
    return f"{did_you_mean(meant)}accepted: {', '.join(names) or 'see --help'}"
