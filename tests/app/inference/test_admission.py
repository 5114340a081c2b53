import pytest

from app.errors import QueueFull
from app.inference.admission import Admission, Bytes


def test_what_is_under_way_is_counted_and_told_and_given_back() -> None:
    told: list[int] = []
    admission = Admission(10, told.append)
    with admission.admit(4, 0.001), admission.admit(6, 0.001):
        assert admission.images == 10
    assert told == [4, 10, 4, 0]


def test_what_is_beyond_is_refused_with_a_time_to_wait() -> None:
    admission = Admission(10)
    with admission.admit(8, 1.0), pytest.raises(QueueFull) as refused, admission.admit(3, 1.5):
        pass
    assert refused.value.retry_after == 12
    assert "8 images are waiting" in str(refused.value)
    with admission.admit(10, 1.0):
        with pytest.raises(QueueFull, match="10 images are waiting"):
            admission.require(1, 1.0)
        assert admission.images == 10
    admission.require(10, 1.0)
    assert admission.images == 0


def test_room_is_given_back_after_a_failure() -> None:
    admission = Admission(1)
    with pytest.raises(ValueError, match="odd"), admission.admit(1, 0.001):
        raise ValueError("odd")
    assert admission.images == 0


def test_bytes_are_counted_and_what_is_beyond_is_refused_and_not_counted() -> None:
    room = Bytes(10)
    room.take(6)
    with pytest.raises(QueueFull, match="6 bytes are under way, and at most 10"):
        room.take(5)
    room.take(4)
    room.give_back(10)
    assert room.held == 0


def test_several_and_large_images_leave_places_to_single_small_ones() -> None:
    admission = Admission(10, reserved=2)
    with admission.admit(8, 0.001):
        with pytest.raises(QueueFull, match="at most 8"), admission.admit(2, 0.001):
            pass
        with pytest.raises(QueueFull, match="at most 8"), admission.admit(1, 0.001, large=True):
            pass
        with admission.admit(1, 0.001), admission.admit(1, 0.001):
            assert admission.images == 10


def test_large_bodies_leave_bytes_to_small_ones() -> None:
    room = Bytes(1_000_000, reserved=100_000)
    room.take(60_000)
    room.take(840_000, before=60_000)
    with pytest.raises(QueueFull, match="at most 900,000"):
        room.take(10, before=900_000)
    room.take(50_000)
