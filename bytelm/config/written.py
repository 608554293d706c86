"""What the user wrote: the options and the config file, before values are converted.

Reports of jsonargparse contain converted values: the content of a file in place of its path, 90 in place of `1:30`.
Messages quote what was written.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from bytelm.config.flat import OF_CLASS, classes_in, values_of

SEXAGESIMAL = re.compile(r"[-+]?\d+(:[0-5]?\d)+")  # YAML 1.1 reads `1:30` as 90


class Written:
    """The options of a command line, and the text of the config file that is being read.

    Args:
        options: The options.
        text: The text; None while the options themselves are parsed.
    """

    def __init__(self, options: Sequence[str] = (), text: str | None = None) -> None:
        self.options = [str(option) for option in options]
        self.in_file = text is not None
        # The values are texts, as they were written.
        content = {} if text is None else yaml.load(text, Loader=yaml.BaseLoader)
        self.config: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}

    def option(self, key: str) -> str | None:
        """Returns the last value of an option; None if it is not given."""
        value = None
        for at, option in enumerate(self.options):
            name, equals, text = option.partition("=")
            following = self.options[at + 1] if at + 1 < len(self.options) else None
            if name.removesuffix("+") == f"--{key}":
                value = text if equals else following
        return value

    def text(self, key: str) -> str | None:
        """Returns the value of a key, if it is one text."""
        if not self.in_file:
            return self.option(key)
        found = next((value for name, value in values_of(self.config) if name == key), None)
        return found if isinstance(found, str) else None

    def time_of_day(self, key: str, number: str) -> str | None:
        """Returns the text that YAML has read as a number of minutes or seconds, such as `1:30` for 90.

        Args:
            key: The key of the value, or of the list with it.
            number: The number.
        """
        for name, text in values_of(self.config):
            is_one = name == key and isinstance(text, str) and SEXAGESIMAL.fullmatch(text)
            if is_one and str(yaml.safe_load(text)) == number:
                return str(text)
        return None

    def beside_class(self, key: str) -> tuple[str, str, str] | None:
        """Returns an option that is written beside `class_path` instead of below `init_args`, at a key or below it.

        Returns:
            The key, the class and the option; None if there is none.
        """
        for name, value in classes_in(self.config):
            others = [option for option in value if option not in OF_CLASS]
            if others and f"{name}.".startswith(f"{key}."):
                return name, value["class_path"], others[0]
        return None
