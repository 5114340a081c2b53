"""GRAFT_PROVIDER → the execution providers that sessions ask for. What is not to be had is told at the start."""

from collections.abc import Callable, Sequence

from app.bundle.session import CPU, compiled_in, started
from app.errors import SettingsInvalid
from app.settings import PREFIX
from app.telemetry.requests import log

GPU = "CUDAExecutionProvider"  # of onnxruntime-gpu
WORDS = ("cpu", "prefer-gpu", "require-gpu")
_ON_GPU = (GPU, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")

CompiledIn = Callable[[], Sequence[str]]
Started = Callable[[Sequence[str]], Sequence[str]]


def choose(wanted: str, compiled_in: CompiledIn = compiled_in, started: Started = started) -> tuple[str, ...]:
    """For `Session`, which must then run on one of these: the CPU is among them only where it will do."""
    if wanted == "cpu":
        return CPU
    named = (GPU,) if wanted in WORDS else tuple(name.strip() for name in wanted.split(","))
    lacking = _lacking(named, compiled_in, started)
    if lacking is None:
        return (*named, *CPU) if wanted == "prefer-gpu" else named
    if wanted == "prefer-gpu":
        log.warning("%sPROVIDER=%s: the CPU runs the graphs: %s", PREFIX, wanted, lacking)
        return CPU
    raise SettingsInvalid(f"{PREFIX}PROVIDER={wanted}: {lacking}")


def wants_gpu(wanted: str) -> bool:
    """Whether `choose` would ask for one."""
    return wanted in WORDS[1:] or any(name.strip() in _ON_GPU for name in wanted.split(","))


def _lacking(named: Sequence[str], compiled_in: CompiledIn, started: Started) -> str | None:
    """What keeps these from being had, and the mend."""
    here = compiled_in()
    absent = [name for name in named if name not in here]
    if absent:
        mend = "`make install-gpu` installs one that has" if GPU in absent else f"write those, or {', '.join(WORDS)}"
        return f"this onnxruntime has no {absent[0]!r}, it has {', '.join(here)}; {mend}"
    running = started(named)
    idle = [name for name in named if name not in running]
    if idle:
        return (
            f"this onnxruntime has {idle[0]}, but it does not start here: onnxruntime fell back to "
            f"{', '.join(running) or 'nothing'}; docs/install.md says what it needs of driver and libraries"
        )
    return None
