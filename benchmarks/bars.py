"""What was to be reached, and whether it was."""

from collections.abc import Sequence
from typing import NamedTuple


class Bar(NamedTuple):
    what: str
    value: float
    bar: float
    goal: float
    higher_is_better: bool = True

    @property
    def verdict(self) -> str:
        def reached(limit: float) -> bool:
            return self.value >= limit if self.higher_is_better else self.value <= limit

        return "goal" if reached(self.goal) else "bar" if reached(self.bar) else "MISSED"

    def line(self) -> str:
        return f"{self.verdict:6}  {self.what}: {self.value:.4f} (bar {self.bar:g}, goal {self.goal:g})"


def table(bars: Sequence[Bar], digits: int) -> str:
    rows = [["what", "measured", "bar", "goal", ""], ["---"] * 5]
    for bar in bars:
        sign = "≥" if bar.higher_is_better else "≤"
        rows.append([bar.what, f"{bar.value:.{digits}f}", f"{sign} {bar.bar:g}", f"{sign} {bar.goal:g}", bar.verdict])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
