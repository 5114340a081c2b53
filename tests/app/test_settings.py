import re
from pathlib import Path

import pytest
from support import ROOT

from app.errors import SettingsInvalid
from app.settings import PREFIX, Settings, load_settings, mistyped


def test_every_setting_is_documented_with_its_default() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    rows = dict(re.findall(r"^\| `(GRAFT_\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default in (None, "") else f"`{field.default}`"
        assert rows.pop(f"{PREFIX}{name.upper()}", "").strip() == default, name
        assert field.description, name
    assert set(rows) == {"GRAFT_DATA", "GRAFT_MEMORY_MB"}, "documented, and not a setting"


def test_the_environment_is_read_and_an_empty_value_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_PORT", "9000")
    monkeypatch.setenv("GRAFT_HOST", "")
    settings = load_settings()
    assert (settings.port, settings.host) == (9000, "127.0.0.1")
    assert load_settings(port="9001").port == 9001


def test_descriptions_and_pages_agree_on_limits_per_worker() -> None:
    """Each of several workers has an app of its own, with its own queue, bodies, connections and threads."""
    pages = [(ROOT / page).read_text() for page in ("docs/settings.md", "docs/security.md")]
    of_each = {name for name, field in Settings.model_fields.items() if "each worker" in str(field.description)}
    assert of_each >= {"threads", "max_batch", "max_queue", "max_bodies_mb", "max_connections"}
    for line in "\n".join(pages).splitlines():
        if row := re.match(rf"\| `{PREFIX}(\w+)` \|", line):
            assert ("each worker" in line) == (row[1].lower() in of_each), line


def test_the_limits_of_the_security_page_are_the_settings() -> None:
    page = (ROOT / "docs/security.md").read_text()
    rows = dict(re.findall(r"^\| `GRAFT_(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    limits = {
        name for name in Settings.model_fields if name.startswith("max_") or name.endswith(("timeout_s", "timeout_ms"))
    }
    assert {name.lower() for name in rows} == limits - {"max_batch"}, "max_batch bounds nothing that a client sends"
    for name, default in rows.items():
        assert default == str(Settings.model_fields[name.lower()].default), name


@pytest.mark.parametrize(
    ("name", "value"),
    [("GRAFT_PORT", "http"), ("GRAFT_PORT", "70000"), ("GRAFT_MAX_IMAGES", "0"), ("GRAFT_THREADS", "-1")],
)
def test_a_bad_value_is_named_as_it_was_written(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=rf"^{name}={value}: "):
        load_settings()
    monkeypatch.delenv(name)
    flag = f"--{name.removeprefix(PREFIX).lower().replace('_', '-')}"
    with pytest.raises(SettingsInvalid, match=rf"^{flag}={value}: "):
        load_settings(**{name.removeprefix(PREFIX).lower(): value})


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings(models=Path("x")).port = 1  # type: ignore[misc]


def test_a_queue_that_could_never_hold_a_request_is_refused() -> None:
    with pytest.raises(SettingsInvalid, match=r"--max-queue=10: .*the queue must hold one"):
        load_settings(max_queue=10, max_images=11)
    assert load_settings(max_queue=11, max_images=11).max_queue == 11
    with pytest.raises(SettingsInvalid, match="MAX_BODY_MB"):
        load_settings(max_bodies_mb=10, max_body_mb=11)
    assert load_settings(max_bodies_mb=11, max_body_mb=11).max_bodies_mb == 11
    with pytest.raises(SettingsInvalid, match=r"max-request-pixels=10: .*an image may have 11 pixels \(MAX_PIXELS\)"):
        load_settings(max_request_pixels=10, max_pixels=11)
    assert load_settings(max_request_pixels=11, max_pixels=11).max_request_pixels == 11


def test_calls_that_would_reach_one_worker_of_several_are_refused() -> None:
    with pytest.raises(SettingsInvalid, match=r"--model-control=explicit: .*one of 2 workers: use poll"):
        load_settings(model_control="explicit", workers=2)
    for control, workers in (("explicit", 1), ("poll", 2)):
        assert load_settings(model_control=control, workers=workers).workers == workers


def test_a_misspelt_setting_is_named() -> None:
    environment = {
        "GRAFT_MAXBATCH": "4",
        "GRAFT_API_KEY": "k",
        "GRAFT_DATA": "d",
        "GRAFT_SERVICE_HOST": "h",
        "PATH": "",
    }
    assert mistyped(environment) == {"GRAFT_MAXBATCH": "GRAFT_MAX_BATCH", "GRAFT_API_KEY": "GRAFT_API_KEYS"}
