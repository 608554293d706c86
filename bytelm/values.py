"""Values that users give: checked once, where they enter, with a message that names key, value and what is accepted.

Ranges of single numbers are types, which the command line checks against the key that they came from. What depends on
several values (n_heads divides d_model) is checked by the constructor that sees them all, which raises
bytelm.errors.ConfigError.
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

__all__ = ["NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "UnitInterval"]
