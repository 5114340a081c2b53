import json
from pathlib import Path

import pytest

from training import recipe
from training.compare.results import Comparison, Result, difference, read, words, write

SEED = recipe.load("seed", [])


def results(**arms: list[float]) -> list[Result]:
    return [Result(arm, 10, 100, seed, value) for arm, values in arms.items() for seed, value in enumerate(values)]


def test_a_difference_is_taken_seed_by_seed() -> None:
    """Both swing widely from seed to seed, together: the difference is sure all the same."""
    found = difference(results(scratch=[0.1, 0.5, 0.9], source=[0.2, 0.6, 1.0]), "source", 100)
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert found.low > 0.09
    assert difference(results(source=[0.1, 0.2]), "source", 100) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([0.40, 0.41, 0.42], "NEGATIVE TRANSFER: Against training from scratch, the encoder of mnist, frozen, hurts"),
        ([0.80, 0.81, 0.83], "Against training from scratch, the encoder of mnist, frozen, helps with 100 (+31.3"),
        ([0.10, 0.50, 0.90], "makes no measurable difference"),
    ],
)
def test_what_happened_is_said_aloud(source: list[float], message: str) -> None:
    text = words(results(scratch=[0.50, 0.50, 0.50], source=source), SEED)
    assert message in text[0]
    assert ("NEGATIVE TRANSFER" in " ".join(text)) == (message.startswith("NEGATIVE"))


def test_an_untrained_network_that_does_as_well_is_named() -> None:
    text = words(results(random=[0.60, 0.61, 0.62], source=[0.60, 0.62, 0.61]), SEED)
    expected = "is not measurably better than the same network with random weights"
    assert any(expected in sentence for sentence in text)


def test_numbers_are_written_and_read_again(tmp_path: Path) -> None:
    found = results(scratch=[0.5, 0.6, 0.7], source=[0.4, 0.5, 0.6])
    write(tmp_path, Comparison(SEED, 10_000, found))
    assert read(tmp_path) == found
    assert read(tmp_path / "elsewhere") == []
    facts = json.loads((tmp_path / "comparison.json").read_text())
    assert (facts["source"], facts["target"], facts["test_images"]) == ("mnist", "fashion-mnist", 10_000)
