from pathlib import Path

import pytest

from training.errors import TrainingError
from training.search import space


def read(tmp_path: Path, text: str) -> dict[str, object]:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return dict(space.read(path))


def test_settings_are_lists_and_ranges_in_tables_or_with_dots(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        '"transfer.rate" = { low = 1e-4, high = 1e-2, log = true }\n[network]\nwidth = [16, 24]\n'
        "[transfer]\nepochs = { low = 5, high = 40 }\n",
    )
    assert sorted(found) == ["network.width", "transfer.epochs", "transfer.rate"]
    assert [type(found[name]).__name__ for name in sorted(found)] == [
        "CategoricalDistribution",
        "IntDistribution",
        "FloatDistribution",
    ]


def test_values_become_changes_of_a_recipe() -> None:
    values = {"transfer.rate": 0.003, "network.width": 16, "transfer.reads": "features", "anomaly.strides": "[4, 8]"}
    assert space.changes(values) == [
        "transfer.rate=0.003",
        "network.width=16",
        'transfer.reads="features"',
        "anomaly.strides=[4, 8]",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no setting"),
        ("a = 3", "a: a list of values, or"),
        ("a = []", "a: a list of values, or"),
        ("a = { low = 3 }", "a: a list of values, or"),
        ("a = { low = 3, high = 1 }", "a: "),
        ("a = ", "space.toml: "),
    ],
)
def test_a_space_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read(tmp_path, text)
    with pytest.raises(TrainingError, match="No such file"):
        space.read(tmp_path / "none.toml")
