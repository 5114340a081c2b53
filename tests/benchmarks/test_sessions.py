import pytest

from benchmarks import sessions
from benchmarks.bundles import SEED, bundle


@pytest.mark.parametrize("setting", sessions.SETTINGS)
def test_every_setting_is_one_that_onnxruntime_knows(setting: str) -> None:
    found = sessions.run(bundle(SEED) / "encoder.onnx", setting, seconds=0.05)
    assert found["per_second"] > 0
    assert 20 < found["loaded_mb"] <= found["last_mb"] + 5


def test_the_table_has_medians_of_every_setting() -> None:
    def ran(rate: float) -> dict[str, float]:
        return {"per_second": rate, "loaded_mb": 90.0, "first_mb": 100.0, "last_mb": 101.0}

    output = sessions.table({"m": {"one thread": [ran(10.0), ran(1000.0), ran(30.0)]}})
    assert "| m | one thread | 30 | 90 | 100 | 101 |" in output
