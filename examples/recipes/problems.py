"""What is wrong with a user's data: what is skipped is counted and named, the rest is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_NAMED = 5  # of each kind, in the summary


class DataError(Exception):
    """Data that cannot be trained on. The message says why, and what would do."""


class Problems:
    """What was skipped, by kind."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, what: Any) -> None:
        """Notes one thing that is skipped, and why."""
        self.found.setdefault(kind, []).append(str(what))

    def __str__(self) -> str:
        """Returns a line per kind, with the first few names."""
        lines = []
        for kind, names in self.found.items():
            more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"  {len(names):>6}  {kind}: {', '.join(names[:_NAMED])}{more}")
        return "\n".join(lines)

    def lines(self) -> Iterable[str]:
        """Yields all of them, for a file."""
        for kind, names in self.found.items():
            for name in names:
                yield f"{kind}: {name}"
