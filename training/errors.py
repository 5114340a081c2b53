"""What can go wrong in training: each ends the command with one sentence and exit code 2."""

from app.bundle import GraftError


class TrainingError(GraftError):
    """The message names the thing and the mend."""


def in_short(error: Exception) -> str:
    """The first sentence of another library's message: torch's run to a page, and advise to load what is not safe."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.split(". ")[0].rstrip(".")
