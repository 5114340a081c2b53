import logging
from collections.abc import Sequence

import pytest

from app.bundle.session import CPU, compiled_in, started
from app.errors import SettingsInvalid
from app.inference.providers import GPU, choose

HAS_GPU = GPU in compiled_in()


def has(*names: str) -> list[str]:
    """What an onnxruntime of another build would say."""
    return [*names, *CPU]


def starts_all(providers: Sequence[str]) -> list[str]:
    return [*providers, *CPU]


def falls_back(_: Sequence[str]) -> list[str]:
    """As onnxruntime does where there is no driver: no error, and the CPU."""
    return list(CPU)


def test_the_cpu_needs_no_look_at_what_there_is() -> None:
    assert choose("cpu", compiled_in=list, started=falls_back) == CPU


def test_a_gpu_that_starts_is_asked_for_first_and_the_cpu_only_where_it_will_do() -> None:
    assert choose("prefer-gpu", lambda: has(GPU), starts_all) == (GPU, *CPU)
    assert choose("require-gpu", lambda: has(GPU), starts_all) == (GPU,)
    assert choose(f"{GPU}, {CPU[0]}", lambda: has(GPU), starts_all) == (GPU, *CPU)


@pytest.mark.parametrize("wanted", ["require-gpu", GPU, f"{GPU},{CPU[0]}"])
def test_a_gpu_that_is_compiled_in_and_does_not_start_is_refused(wanted: str) -> None:
    with pytest.raises(SettingsInvalid, match=rf"^GRAFT_PROVIDER={wanted}: .* has {GPU}, but it does not start here"):
        choose(wanted, lambda: has(GPU), falls_back)


@pytest.mark.parametrize("wanted", ["require-gpu", GPU, f"{GPU},{CPU[0]}"])
def test_a_gpu_that_is_not_compiled_in_is_refused_with_the_mend(wanted: str) -> None:
    with pytest.raises(SettingsInvalid, match=rf"has no '{GPU}', it has .*{CPU[0]}; `make install-gpu`"):
        choose(wanted, has, starts_all)


@pytest.mark.parametrize(("here", "why"), [(has(), "has no"), (has(GPU), "does not start")])
def test_a_preferred_gpu_that_is_not_to_be_had_is_a_warning(
    here: list[str], why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("graft"), "propagate", True)  # a test before may have configured the logs
    assert choose("prefer-gpu", lambda: here, falls_back) == CPU
    [warning] = caplog.records
    assert warning.levelname == "WARNING"
    assert "the CPU runs the graphs" in warning.getMessage()
    assert why in warning.getMessage()


@pytest.mark.parametrize("wanted", ["gpu", "GPU", "", ",", "CPUExecutionProvider,NoSuchProvider"])
def test_an_unknown_name_is_refused_with_those_that_there_are(wanted: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        choose(wanted)
    for name in (*compiled_in(), "prefer-gpu"):
        assert name in str(refused.value)


def test_what_this_machine_has_can_be_named() -> None:
    assert choose("CPUExecutionProvider") == CPU
    assert started(CPU) == list(CPU)


@pytest.mark.skipif(not HAS_GPU, reason=f"this onnxruntime has no {GPU}: make install-gpu")
def test_a_real_gpu_starts() -> None:
    if GPU not in started([GPU]):
        pytest.skip(f"{GPU} does not start on this machine")
    assert choose("require-gpu") == (GPU,)
