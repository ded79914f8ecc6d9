"""Small helpers for sentences."""


def plural(count: int, word: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")
