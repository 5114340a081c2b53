import pytest

from app.errors import QueueFull
from app.inference.admission import Admission, Bytes


def test_images_in_flight_are_counted_and_changes_are_reported() -> None:
    counts: list[int] = []
    admission = Admission(10, counts.append)
    with admission.admit(4, 0.001), admission.admit(6, 0.001):
        assert admission.images == 10
    assert counts == [4, 10, 4, 0]


def test_images_beyond_the_limit_are_refused_with_a_time_to_wait() -> None:
    admission = Admission(10)
    with admission.admit(8, 1.0), pytest.raises(QueueFull) as refused, admission.admit(3, 1.5):
        pass
    assert refused.value.retry_after == 12
    assert "8 images are in flight" in str(refused.value)
    with admission.admit(10, 1.0):
        with pytest.raises(QueueFull, match="10 images are in flight"):
            admission.require(1, 1.0)
        assert admission.images == 10
    admission.require(10, 1.0)
    assert admission.images == 0


def test_a_failure_frees_its_places() -> None:
    admission = Admission(1)
    with pytest.raises(ValueError, match="odd"), admission.admit(1, 0.001):
        raise ValueError("odd")
    assert admission.images == 0


def test_bytes_beyond_the_limit_are_refused_and_not_counted() -> None:
    room = Bytes(10)
    room.acquire(6)
    with pytest.raises(QueueFull, match="6 bytes are in flight, and at most 10"):
        room.acquire(5)
    room.acquire(4)
    room.release(10)
    assert room.held == 0


def test_several_and_large_images_cannot_use_reserved_places() -> None:
    admission = Admission(10, reserved=2)
    with admission.admit(8, 0.001):
        with pytest.raises(QueueFull, match="at most 8"), admission.admit(2, 0.001):
            pass
        with pytest.raises(QueueFull, match="at most 8"), admission.admit(1, 0.001, large=True):
            pass
        with admission.admit(1, 0.001), admission.admit(1, 0.001):
            assert admission.images == 10


def test_large_bodies_cannot_use_reserved_bytes() -> None:
    room = Bytes(1_000_000, reserved=100_000)
    room.acquire(60_000)
    room.acquire(840_000, before=60_000)
    with pytest.raises(QueueFull, match="at most 900,000"):
        room.acquire(10, before=900_000)
    room.acquire(50_000)
