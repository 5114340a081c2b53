import pytest

from benchmarks import stages

STACK = (
    "run (/x/asyncio/runners.py:118);app (/x/fastapi/routing.py:300);classify (/r/app/api/operations.py:60);"
    "answered (/r/app/api/call.py:71)"
)


@pytest.mark.parametrize(
    ("more", "stage"),
    [
        ("", "call and its answer's shape"),
        (";within_deadline (/r/app/api/call.py:85)", "deadline and disconnect"),
        (";predict (/r/app/inference/predictor.py:44);decode (/r/app/bundle/decode.py:9)", "decode"),
        (";predict (/r/app/inference/predictor.py:44);isfinite (/x/other.py:1)", "batcher, admission, predictor"),
        (";run (/r/app/bundle/session.py:61)", "run of the graphs"),
    ],
)
def test_a_sample_belongs_to_the_innermost_frame_of_a_stage(more: str, stage: str) -> None:
    assert stages.stage_of(STACK + more) == stage


def test_what_is_of_no_stage_is_told_apart() -> None:
    below = "<module> (/r/app/__main__.py:100);run (/x/uvicorn/server.py:70);Runner.run (/x/asyncio/runners.py:118)"
    assert stages.stage_of(below) == stages.OTHER
    assert stages.stage_of(f"{below};send (/x/uvicorn/httptools_impl.py:5)") == "connection: HTTP parsing and writing"


def test_a_thread_that_waits_is_no_cost() -> None:
    waiting = "run (/x/anyio/_asyncio.py:9);get (/x/queue.py:171);Condition.wait (/x/threading.py:327)"
    assert stages.shares({waiting: 90, STACK: 1}, stages.stage_of) == {"call and its answer's shape": 1.0}
    assert stages.stage_of("run (/x/anyio/_asyncio.py:9);get (/x/queue.py:180)") == "changes of thread"


def test_shares_are_of_all_samples_the_largest_first() -> None:
    found = stages.shares({"a (x.py:1)": 1, "b (x.py:2)": 2, "a (x.py:3)": 5}, stages.function_of)
    assert found == {"a (x.py)": 0.75, "b (x.py)": 0.25}
    assert list(found) == ["a (x.py)", "b (x.py)"]
