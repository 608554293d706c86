"""Values that users give: checked once, where they enter, with a message that names key, value and what is accepted.

Ranges of single numbers are types, which the command line checks against the key that they came from. What depends on
several values (n_heads divides d_model) is checked by the constructor that sees them all, which raises ConfigError.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a type checker knows them as the numbers that they are
    PositiveInt = int
    NonNegativeInt = int
    PositiveFloat = float
    NonNegativeFloat = float
    UnitInterval = float
else:
    from jsonargparse.typing import ClosedUnitInterval as UnitInterval
    from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = ["ConfigError", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "UnitInterval"]


class ConfigError(ValueError):
    """A value that cannot work. The command line prints its message, without a traceback, and exits with status 2.

    Args:
        key: The key as the user wrote it, such as `n_heads`.
        value: The value given for it.
        accepted: What would be accepted, or why this is not.
    """

    def __init__(self, key: str, value: object, accepted: str) -> None:
        super().__init__(f"{key}: {value!r} cannot be used; {accepted}")
