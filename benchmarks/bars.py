"""What was to be reached, and whether it was."""

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

    def told(self) -> str:
        return f"{self.verdict:6}  {self.what}: {self.value:.4f} (bar {self.bar:g}, goal {self.goal:g})"
