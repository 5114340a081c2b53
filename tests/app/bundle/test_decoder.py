"""A real process that decodes: same pixels, same errors, and it always ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from hostile import DRAWN, bmp_run_length
from support import ROOT, environment, eventually, spec, tiled_spec

from app.bundle.decoder import AVAILABLE, Decoder
from app.bundle.drawings import golden_files
from app.bundle.header import PIXELS_CEILING, read_header
from app.bundle.preprocess import preprocess
from app.errors import BrokenImage, DecoderEnded, NotAnImage, TooManyPixels

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this system has no decoder process")
SPEC = spec(31, 29, 3, background="white", resize="pad")
SLOW = bmp_run_length(1500, 1400)  # takes a third of a second, in Python
ROOM = 1 << 30


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    child = Decoder(timeout_s=60)
    yield child
    child.close()
    assert not child.alive


@pytest.mark.parametrize("name", DRAWN)
def test_pixels_are_the_same_as_in_this_process(decoder: Decoder, name: str) -> None:
    data = DRAWN[name](301, 203)
    granted = read_header(data).peak_bytes(SPEC)
    assert np.array_equal(decoder.decode(data, SPEC, PIXELS_CEILING, granted), preprocess(data, SPEC))


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_in_tiles_comes_back_in_its_own_size(decoder: Decoder, name: str, scale: float) -> None:
    data, shape = DRAWN[name](301, 203), tiled_spec(channels=3, scale=scale)
    granted = read_header(data).peak_bytes(shape)
    found = decoder.decode(data, shape, PIXELS_CEILING, granted)
    assert np.array_equal(found, preprocess(data, shape))
    assert sorted(found.shape[:2]) == [round(203 * scale), round(301 * scale)]


def test_golden_files_decode_to_the_same_pixels(decoder: Decoder) -> None:
    for shape in (SPEC, spec(28, 28, 1)):
        for data in golden_files():
            assert np.array_equal(decoder.decode(data, shape, PIXELS_CEILING, ROOM), preprocess(data, shape))


@pytest.mark.parametrize(
    ("data", "most", "error"),
    [
        (b"no image", PIXELS_CEILING, NotAnImage),
        (golden_files()[0][:60], PIXELS_CEILING, BrokenImage),
        (DRAWN["WebP RGB"](100, 100), 9_999, TooManyPixels),
    ],
)
def test_errors_are_the_same_as_in_this_process(
    decoder: Decoder, data: bytes, most: int, error: type[Exception]
) -> None:
    with pytest.raises(error) as in_child:
        decoder.decode(data, SPEC, most, ROOM)
    with pytest.raises(error) as in_parent:
        preprocess(data, SPEC, most)
    assert str(in_child.value) == str(in_parent.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_an_image_takes_no_more_memory_than_granted_and_the_next_one_is_decoded(decoder: Decoder) -> None:
    large = DRAWN["WebP RGBA, lossless"](4000, 4000)
    with pytest.raises(BrokenImage, match=r"takes more than the 1,000 bytes|broken WEBP"):
        decoder.decode(large, SPEC, PIXELS_CEILING, 1000)
    granted = read_header(large).peak_bytes(SPEC)
    assert decoder.decode(large, SPEC, PIXELS_CEILING, granted).shape == SPEC.shape


def test_it_has_low_priority_and_is_killed_first_when_memory_runs_out(decoder: Decoder) -> None:
    process = psutil.Process(decoder.process_id)
    decoder.decode(golden_files()[0], SPEC, PIXELS_CEILING, ROOM)
    assert process.nice() >= min(19, psutil.Process().nice() + 10)
    assert process.num_threads() == 1
    if sys.platform.startswith("linux"):
        with open(f"/proc/{decoder.process_id}/oom_score_adj") as file:
            assert file.read().strip() == "1000"
    assert not [name for name in process.environ() if name.startswith("GRAFT_")]


def test_the_error_names_the_signal_that_killed_it() -> None:
    decoder = Decoder(timeout_s=60)
    decoder.decode(golden_files()[0], SPEC, PIXELS_CEILING, ROOM)
    killer = threading.Timer(0.1, os.kill, (decoder.process_id, signal.SIGKILL))
    killer.start()
    with pytest.raises(DecoderEnded, match="SIGKILL"):
        _decode_for_long(decoder)
    assert not decoder.alive


def test_a_process_that_takes_too_long_is_killed() -> None:
    decoder = Decoder(timeout_s=0.01)
    with pytest.raises(DecoderEnded, match=r"more than 0\.01 s"):
        decoder.decode(SLOW, SPEC, PIXELS_CEILING, ROOM)
    assert not decoder.alive


def test_closing_it_wakes_the_thread_that_waits() -> None:
    decoder, errors = Decoder(timeout_s=60), []

    def decode_until_closed() -> None:
        try:
            _decode_for_long(decoder)
        except DecoderEnded as error:
            errors.append(error)

    thread = threading.Thread(target=decode_until_closed)
    thread.start()
    time.sleep(0.3)
    decoder.close()
    thread.join(20)
    assert len(errors) == 1


def test_it_exits_when_its_parent_is_killed() -> None:
    code = (
        "import time; from app.bundle.decoder import Decoder\n"
        "decoder = Decoder(60); print(decoder.process_id, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not _is_running(child))


def _decode_for_long(decoder: Decoder) -> None:
    for _ in range(100):
        decoder.decode(SLOW, SPEC, PIXELS_CEILING, ROOM)


def _is_running(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
