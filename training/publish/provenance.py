"""Where a bundle comes from: the source tree that made it. No torch."""

import subprocess
from pathlib import Path


def commit() -> str:
    """Of the source tree, with a mark if it was changed since; unknown outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty"],  # noqa: S607 - whichever git the user has
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
