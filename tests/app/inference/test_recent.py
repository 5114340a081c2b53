"""The latest requests are remembered, within a bound on their bytes."""

from typing import Any, cast

import numpy as np

from app.inference.predictor import Prediction
from app.inference.recent import Recent


class _Bundle:
    name = "tiny"


def result(*files: bytes) -> Prediction:
    bundle = cast(Any, _Bundle())
    return Prediction(bundle, files, np.empty(0), outputs={}, decode_s=0, queue_s=0, run_s=0, batch=1)


def test_the_oldest_make_room() -> None:
    recent = Recent(3_000)
    for number in range(4):
        recent.add(str(number), result(bytes(500)))
    assert [recent.find(str(number)) is not None for number in range(4)] == [False, True, True, True]
    recent.add("large", result(bytes(2_000)))
    assert [recent.find(each) is not None for each in ("2", "3", "large")] == [False, False, True]
    assert recent.find("large") == ("tiny", (bytes(2_000),))


def test_what_would_never_fit_and_what_is_no_file_is_not_kept() -> None:
    recent = Recent(3_000)
    recent.add("small", result(b"x"))
    recent.add("huge", result(bytes(4_000)))
    recent.add("pixels", result())
    assert [recent.find(each) is not None for each in ("small", "huge", "pixels")] == [True, False, False]


def test_an_id_that_comes_again_is_of_the_latest_request() -> None:
    recent = Recent(3_000)
    for file in (b"one", b"two"):
        recent.add("same", result(file))
    assert recent.find("same") == ("tiny", (b"two",))
