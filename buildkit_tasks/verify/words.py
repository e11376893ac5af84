"""Numbers in sentences."""

__all__ = ["counted"]


def counted(number: int, one: str, many: str) -> str:
    """The number and the noun that agrees with it."""
    return f"{number} {one if number == 1 else many}"
