"""What a check of the data finds: something that a person should know, and what mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """Something about the data that a person should know.

    An error makes scores wrong, a warning may, a note does not. `examples` are ids of rows.
    """

    name: str
    severity: Severity
    count: int
    message: str
    mend: str
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = f" ({', '.join(self.examples[:5])}{', …' if len(self.examples) > 5 else ''})" if self.examples else ""
        return f"{self.severity}: {self.message}{rows}; {self.mend}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
