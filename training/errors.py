"""What can go wrong in training: each ends the command with one sentence and exit code 2."""

from app.bundle import GraftError


class TrainingError(GraftError):
    """The message names the thing and the mend."""
