"""GRAFT_PROVIDER → the execution providers that sessions ask for. One that is not available is reported at start."""

from collections.abc import Sequence

from app.bundle.session import CPU, GPU, CompiledIn, Started, compiled_in, started
from app.errors import SettingsInvalid
from app.settings import PREFIX
from app.telemetry.logs import log

WORDS = ("cpu", "prefer-gpu", "require-gpu")
_ON_GPU = (GPU, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


def choose(wanted: str, compiled_in: CompiledIn = compiled_in, started: Started = started) -> tuple[str, ...]:
    """The providers for `Session`, which must run on one of them: the CPU is included only as an allowed fallback."""
    if wanted == "cpu":
        return CPU
    names = (GPU,) if wanted in WORDS else tuple(name.strip() for name in wanted.split(","))
    reason = _unavailable(names, compiled_in, started)
    if reason is None:
        return (*names, *CPU) if wanted == "prefer-gpu" else names
    if wanted == "prefer-gpu":
        log.warning("%sPROVIDER=%s: the CPU runs the graphs: %s", PREFIX, wanted, reason)
        return CPU
    raise SettingsInvalid(f"{PREFIX}PROVIDER={wanted}: {reason}")


def wants_gpu(wanted: str) -> bool:
    """Whether `choose` would ask for a GPU."""
    return wanted in WORDS[1:] or any(name.strip() in _ON_GPU for name in wanted.split(","))


def _unavailable(names: Sequence[str], compiled_in: CompiledIn, started: Started) -> str | None:
    """Why one of these providers is not available, and what to do; None if all are."""
    available = compiled_in()
    absent = [name for name in names if name not in available]
    if absent:
        remedy = "`make install-gpu` installs one with it" if GPU in absent else f"use those, or {', '.join(WORDS)}"
        return f"this onnxruntime has no {absent[0]!r}, it has {', '.join(available)}; {remedy}"
    running = started(names)
    failed = [name for name in names if name not in running]
    if failed:
        return (
            f"this onnxruntime has {failed[0]}, but it does not start here: onnxruntime fell back to "
            f"{', '.join(running) or 'nothing'}; docs/install.md lists the driver and libraries that it needs"
        )
    return None
