"""POST /v1/<operation>, over a real socket."""

import base64
import io
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from support import LABELS, ROOT, assert_problem, save_tiny, serving, spec

from app.bundle import load
from app.bundle.bundle import Bundle
from app.bundle.drawings import GARMENTS, garment, golden_files
from app.bundle.encode import png
from app.bundle.scoring import reconstruction_errors
from app.settings import Settings

FILES = [png(garment(kind)) for kind in GARMENTS]
GOOD = FILES[0]


@pytest.fixture(scope="module")
def expected(models: Path) -> list[str]:
    bundle = load(models / "tiny/1")
    return [c.label for c in bundle.classify(np.stack([bundle.preprocess(file) for file in FILES]))]


def labels(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [result["label"] for result in answer.json()["results"]]


def test_a_form_of_several_files_is_answered_in_order(client: httpx.Client, expected: list[str]) -> None:
    parts = [(f"any-{i}", (f"{i}.png", file, "image/png")) for i, file in enumerate(FILES)]
    assert labels(client.post("/v1/classify", files=parts)) == expected


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "image/x-anything"])
def test_a_raw_body_is_one_image_whatever_subtype_it_claims(
    client: httpx.Client, expected: list[str], kind: str
) -> None:
    for file, label in zip(FILES, expected, strict=True):
        assert labels(client.post("/v1/classify", content=file, headers={"content-type": kind})) == [label]


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:;base64,"])
def test_json_holds_base64_with_or_without_a_data_url(client: httpx.Client, expected: list[str], prefix: str) -> None:
    images = [prefix + base64.b64encode(file).decode() for file in FILES]
    assert labels(client.post("/v1/classify", json={"images": images})) == expected
    folded = [prefix + base64.encodebytes(file).decode() for file in FILES]
    assert labels(client.post("/v1/classify", json={"images": folded})) == expected


def test_json_may_begin_as_windows_has_it(client: httpx.Client) -> None:
    output = json.dumps({"images": [base64.b64encode(GOOD).decode()]}).encode()
    assert (
        client.post(
            "/v1/classify", content=b"\xef\xbb\xbf" + output, headers={"content-type": "application/json"}
        ).status_code
        == 200
    )


def test_the_answer_says_who_answered_and_how_sure(client: httpx.Client, models: Path) -> None:
    bundle = load(models / "tiny/1")
    body = client.post("/v1/classify", files={"image": GOOD}).json()
    assert body["model"] == {"name": "tiny", "version": 1, "digest": bundle.digest}
    [result] = body["results"]
    assert set(result) == {"label", "index", "confidence", "probabilities"}
    assert set(result["probabilities"]) == set(LABELS)
    assert LABELS[result["index"]] == result["label"] == next(iter(result["probabilities"]))
    assert result["confidence"] == max(result["probabilities"].values())
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    [direct] = bundle.classify(bundle.preprocess(GOOD)[None])
    assert result["confidence"] == direct.confidence


def test_every_kind_of_png_is_answered_as_in_process(client: httpx.Client, models: Path) -> None:
    bundle = load(models / "tiny/1")
    for file in golden_files():
        [direct] = bundle.classify(bundle.preprocess(file)[None])
        [served] = client.post("/v1/classify", files={"image": file}).json()["results"]
        assert served["probabilities"] == dict(direct.ranked)


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_top_k_bounds_the_probabilities(client: httpx.Client, top_k: int, count: int) -> None:
    [result] = client.post(f"/v1/classify?top_k={top_k}", files={"image": GOOD}).json()["results"]
    assert len(result["probabilities"]) == count


@pytest.mark.parametrize("model", ["tiny", "tiny@1"])
def test_a_model_is_named_with_or_without_its_version(client: httpx.Client, model: str) -> None:
    assert client.post(f"/v1/classify?model={model}", files={"image": GOOD}).status_code == 200


@pytest.mark.parametrize(
    "model",
    [
        "other",
        "tiny@2",
        "tiny@",
        "tiny@x",
        "tiny@-1",
        "tiny@1.0",
        "@1",
        "..%2F..%2Fetc",
        "tiny@" + "9" * 5000,
        "tiny@²",
    ],
)
def test_a_model_that_is_not_there_is_404(client: httpx.Client, model: str) -> None:
    body = assert_problem(client.post(f"/v1/classify?model={model}", files={"image": GOOD}), 404, "unknown-model")
    assert "tiny@1" in body["detail"]


BROKEN = GOOD[: len(GOOD) // 2]
HUGE = png(Image.new("L", (2000, 600)))


@pytest.mark.parametrize(
    ("request_", "status", "kind", "message"),
    [
        ({"content": b""}, 415, "unsupported-media-type", "no Content-Type"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unsupported-media-type", "text/plain"),
        ({"content": b"x", "headers": {"content-type": "garbage"}}, 415, "unsupported-media-type", "garbage"),
        ({"content": b"", "headers": {"content-type": "image/png"}}, 400, "malformed-request", "zero bytes"),
        ({"content": b"text", "headers": {"content-type": "image/png"}}, 415, "not-an-image", "begins with"),
        ({"content": BROKEN, "headers": {"content-type": "image/png"}}, 422, "broken-image", "broken PNG"),
        ({"content": HUGE, "headers": {"content-type": "image/png"}}, 413, "too-many-pixels", "2000 × 600"),
        (
            {"content": GOOD, "headers": {"content-type": "image/png", "content-encoding": "gzip"}},
            415,
            "unsupported-media-type",
            "gzip",
        ),
        ({"content": b"x" * 1_000_001, "headers": {"content-type": "image/png"}}, 413, "body-too-large", "1,000,000"),
        (
            {"content": iter([b"x" * 600_000] * 2), "headers": {"content-type": "image/png"}},
            413,
            "body-too-large",
            "1,000,000",
        ),
        ({"json": {}}, 400, "malformed-request", "images"),
        ({"json": []}, 400, "malformed-request", "images"),
        ({"json": {"images": []}}, 400, "malformed-request", "at least one"),
        ({"json": {"images": "abc"}}, 400, "malformed-request", "images"),
        ({"json": {"images": ["abc"], "top_k": 3}}, 400, "malformed-request", "without other fields"),
        ({"json": {"images": [3]}}, 400, "malformed-request", "images[0]"),
        ({"json": {"images": ["§"]}}, 400, "malformed-request", "not base64"),
        ({"json": {"images": ["abc"]}}, 400, "malformed-request", "not base64"),
        ({"json": {"images": [""]}}, 400, "malformed-request", "zero bytes"),
        ({"json": {"images": ["QUJD"] * 9}}, 413, "too-many-images", "8"),
        ({"json": {"images": [[]] * 30_000}}, 413, "too-many-images", "more values"),
        ({"json": {"images": ["QUJDü"]}}, 400, "malformed-request", "images[0] is not base64"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "malformed-request", "not JSON"),
        ({"content": b"\xff", "headers": {"content-type": "application/json"}}, 400, "malformed-request", "not JSON"),
        (
            {"content": b"[" * 90_000, "headers": {"content-type": "application/json"}},
            413,
            "too-many-images",
            "more values",
        ),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "malformed-request", "boundary"),
        (
            {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary="}},
            400,
            "malformed-request",
            "boundary",
        ),
        (
            {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}},
            400,
            "malformed-request",
            "form",
        ),
        (
            {"content": b"", "headers": {"content-type": "multipart/form-data; boundary=a"}},
            400,
            "malformed-request",
            "closing",
        ),
        (
            {"content": b"--a--\r\n", "headers": {"content-type": "multipart/form-data; boundary=a"}},
            400,
            "malformed-request",
            "no file",
        ),
        ({"files": {"a": (None, "text")}}, 400, "malformed-request", "other fields: a"),
        ({"files": {"a": ("x.png", b"")}}, 400, "malformed-request", "zero bytes"),
        ({"files": [("a", GOOD)] * 9}, 413, "too-many-images", "8"),
        ({"files": {"a": GOOD}, "params": {"top_k": "0"}}, 400, "malformed-request", "top_k"),
        ({"files": {"a": GOOD}, "params": {"top_k": "many"}}, 400, "malformed-request", "many"),
    ],
)
def test_a_bad_request_hears_what_is_wrong(
    client: httpx.Client, request_: dict[str, object], status: int, kind: str, message: str
) -> None:
    body = assert_problem(client.post("/v1/classify", **request_), status, kind, message)  # type: ignore[arg-type]
    assert "index" not in body


def test_of_several_images_the_one_at_fault_is_named(client: httpx.Client) -> None:
    for bad, status, kind in (
        (BROKEN, 422, "broken-image"),
        (b"text", 415, "not-an-image"),
        (HUGE, 413, "too-many-pixels"),
    ):
        parts = [("f", GOOD), ("f", GOOD), ("f", bad)]
        assert assert_problem(client.post("/v1/classify", files=parts), status, kind)["index"] == 2
    encoded = [base64.b64encode(GOOD).decode(), "§"]
    assert assert_problem(client.post("/v1/classify", json={"images": encoded}), 400, "malformed-request")["index"] == 1


def test_a_form_cut_short_is_refused(client: httpx.Client) -> None:
    request = client.build_request("POST", "/v1/classify", files={"image": GOOD})
    body, headers = request.read(), {"content-type": request.headers["content-type"]}
    for end in range(0, len(body) - 2, max(1, len(body) // 40)):
        answer = client.post("/v1/classify", content=body[:end], headers=headers)
        assert_problem(answer, 400, "malformed-request")


def test_a_part_with_an_images_type_needs_no_file_name(client: httpx.Client) -> None:
    part = (
        b'--b\r\nContent-Disposition: form-data; name="i"\r\nContent-Type: image/png\r\n\r\n' + GOOD + b"\r\n--b--\r\n"
    )
    answer = client.post("/v1/classify", content=part, headers={"content-type": "multipart/form-data; boundary=b"})
    assert len(labels(answer)) == 1


def form(parts: list[bytes]) -> dict[str, Any]:
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return {"content": body, "headers": {"content-type": "multipart/form-data; boundary=b"}}


def test_a_form_made_to_be_slow_is_refused_before_it_is(client: httpx.Client) -> None:
    """Parameters by the thousand, and parts by the thousand; neither may hold up anybody else."""
    start = time.monotonic()
    semicolons = b"Content-Disposition: form-data; x=" + b";" * 3900 + b"\r\n\r\nv"
    assert_problem(client.post("/v1/classify", **form([semicolons] * 200)), 400, "malformed-request", "not files")
    assert_problem(client.post("/v1/classify", **form([b"\r\nv"] * 60_000)), 400, "malformed-request", "not files")
    odd = "multipart/form-data; boundary*0=a; boundary*" + "9" * 5000 + "=3"
    answer = client.post("/v1/classify", content=b"x", headers={"content-type": odd})
    assert_problem(answer, 400, "malformed-request", "boundary")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("boundary", ["b", '"b"', '"a b:c"', "-" * 60])
def test_boundaries_may_be_quoted(client: httpx.Client, boundary: str) -> None:
    mark = boundary.strip('"').encode()
    part = b'\r\nContent-Disposition: form-data; name=i; filename="a;b.png"\r\n\r\n' + GOOD
    body = b"--" + mark + part + b"\r\n--" + mark + b"--\r\n"
    for kind in (
        f"multipart/form-data; boundary={boundary}",
        f"Multipart/Form-Data;charset=utf-8;BOUNDARY={boundary}",
    ):
        assert len(labels(client.post("/v1/classify", content=body, headers={"content-type": kind}))) == 1


def test_a_client_that_goes_away_leaves_no_traceback(client: httpx.Client, capfd: pytest.CaptureFixture[str]) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as raw:
        raw.sendall(head)
    time.sleep(0.2)
    assert client.get("/healthz").status_code == 200
    assert "Traceback" not in capfd.readouterr().err


def test_endless_part_headers_are_cut_off(client: httpx.Client) -> None:
    body = b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\n\r\n--b--\r\n"
    answer = client.post("/v1/classify", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert_problem(answer, 400, "malformed-request", "header")


# --- the other operations ------------------------------------------------------------------------------------------


def several(files: list[bytes]) -> list[tuple[str, bytes]]:
    return [("image", file) for file in files]


def results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def picture(text: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert image.format == "PNG"
    return np.asarray(image)


@pytest.fixture(scope="module")
def bundle(models: Path) -> Bundle:
    return load(models / "tiny/1")


@pytest.fixture(scope="module")
def images(bundle: Bundle) -> np.ndarray:
    return np.stack([bundle.preprocess(file) for file in FILES])


def test_encode_gives_the_bundles_codes_as_json_and_as_npy(
    client: httpx.Client, bundle: Bundle, images: np.ndarray
) -> None:
    for file, image in zip(FILES, images, strict=True):
        direct = bundle.encode(image[None])["embedding"]
        [result] = results(client.post("/v1/encode", files={"image": file}))
        assert result["embedding"] == direct[0].tolist()
        answer = client.post("/v1/encode", files={"image": file}, headers={"accept": "application/x-npy"})
        assert answer.headers["content-type"] == "application/x-npy"
        codes = np.load(io.BytesIO(answer.content), allow_pickle=False)
        assert codes.dtype == np.float32
        assert np.array_equal(codes, direct)


def test_reconstruct_gives_the_picture_and_its_error(client: httpx.Client, bundle: Bundle, images: np.ndarray) -> None:
    drawn = bundle.reconstruct(bundle.encode(images[:1]))
    [result] = results(client.post("/v1/reconstruct", files={"image": GOOD}))
    assert np.array_equal(picture(result["image"]), np.rint(drawn[0, :, :, 0] * 255))
    assert result["error"] == reconstruction_errors(images[:1], drawn)[0]
    answer = client.post("/v1/reconstruct", files={"image": GOOD}, headers={"accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == base64.b64decode(result["image"])


def test_anomaly_gives_the_bundles_verdict(client: httpx.Client, bundle: Bundle, images: np.ndarray) -> None:
    for file, image in zip(FILES, images, strict=True):
        [direct] = bundle.anomaly(image[None])
        [result] = results(client.post("/v1/anomaly", files={"image": file}))
        assert result == {
            "score": direct.score,
            "threshold": direct.threshold,
            "anomalous": direct.anomalous,
            "p_value": direct.p_value,
            "reconstruction_error": direct.distances["reconstruction"],
            "latent_distance": direct.distances["embedding.mahalanobis"],
            "distances": direct.distances,
        }


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.9])
def test_another_false_alarm_rate_moves_the_threshold(client: httpx.Client, rate: float) -> None:
    found = results(client.post(f"/v1/anomaly?false_alarm_rate={rate}", files=several(FILES[:8])))
    usual = results(client.post("/v1/anomaly", files=several(FILES[:8])))
    for result, before in zip(found, usual, strict=True):
        assert (result["score"], result["p_value"]) == (before["score"], before["p_value"])
        assert result["anomalous"] == (result["p_value"] <= rate) == (result["score"] > result["threshold"])
    assert (found[0]["threshold"] < usual[0]["threshold"]) == (rate > 0.05)


def test_a_heatmap_is_white_where_the_drawing_is_furthest_off(
    client: httpx.Client, bundle: Bundle, images: np.ndarray
) -> None:
    off = np.abs(bundle.reconstruct(bundle.encode(images[:1]))[0] - images[0] / 255).mean(axis=2)
    [result] = results(client.post("/v1/anomaly?heatmap=true", files={"image": GOOD}))
    heat = picture(result["heatmap"])
    assert heat.shape == off.shape
    assert heat.max() == 255
    assert np.unravel_index(heat.argmax(), heat.shape) == np.unravel_index(off.argmax(), off.shape)
    answer = client.post("/v1/anomaly", files={"image": GOOD}, headers={"accept": "image/png"})
    assert answer.content == base64.b64decode(result["heatmap"])


@pytest.mark.parametrize("decoder", [False, True])
def test_the_heatmap_of_a_memory_of_patches_is_the_map_that_the_score_reads(tmp_path: Path, decoder: bool) -> None:
    """Also where the bundle could draw the error of a reconstruction; without a decoder nothing else is drawn."""
    save_tiny(tmp_path, shape=spec(height=24, width=40), patches=True, decoder=decoder)
    pixels = np.zeros((24, 40), np.uint8)
    pixels[4:7, 30:33] = 255
    sent = {"image": png(Image.fromarray(pixels))}
    with serving(Settings(models=tmp_path)) as client:
        [result] = results(client.post("/v1/anomaly?heatmap=true", files=sent))
        heat = picture(result["heatmap"])
        assert heat.shape == pixels.shape
        assert np.unravel_index(heat.argmax(), heat.shape) == (5, 31)
        assert (heat[12:, :20] == 0).all()
        assert result["distances"]["patches"] == pytest.approx(0.75)
        [whole] = results(client.post("/v1/predict?heatmap=true", files=sent))
        assert whole["heatmap"] == result["heatmap"]
        answer = client.post("/v1/anomaly", files=sent, headers={"accept": "image/png"})
        assert answer.content == base64.b64decode(result["heatmap"])


@pytest.mark.parametrize("upright", [True, False])
def test_regions_lie_in_the_pictures_own_pixels(tmp_path: Path, upright: bool) -> None:
    """Of a picture twice as large as the input; also where its metadata says that it lies on its side."""
    save_tiny(tmp_path, shape=spec(height=24, width=40), patches=True)
    pixels = np.zeros((48, 80), np.uint8)
    pixels[8:16, 60:68] = 255
    drawn, exif = Image.fromarray(pixels), Image.Exif()
    buffer = io.BytesIO()
    if not upright:
        drawn, exif[0x0112] = drawn.transpose(Image.Transpose.ROTATE_90), 6
    drawn.save(buffer, "PNG", exif=exif)
    sound = png(Image.fromarray(np.zeros((48, 80), np.uint8)))
    with serving(Settings(models=tmp_path)) as client:
        assert "regions" in client.get("/v1/models").json()["models"][0]["operations"]
        files = [("image", buffer.getvalue()), ("image", sound)]
        odd, plain = results(client.post("/v1/anomaly?regions=true", files=files))
        assert plain["regions"] == []
        [region] = odd["regions"]
        left, top, right, bottom = region["box"]
        assert 52 < left < 62
        assert 66 < right < 76
        assert 2 < top < 10
        assert 14 < bottom < 22
        assert (region["p_value"], region["score"]) == (1 / 200, pytest.approx(0.75, abs=0.1))
        assert region["area"] <= (right - left) * (bottom - top)
        alone = {"image": buffer.getvalue()}
        [whole] = results(client.post("/v1/predict?regions=true", files=alone))
        assert whole["regions"] == odd["regions"]
        assert "regions" not in results(client.post("/v1/predict", files=alone))[0]
        [wide] = results(client.post("/v1/anomaly?regions=true&false_alarm_rate=0.5", files=alone))
        assert wide["regions"][0]["area"] > region["area"]
        refused = client.post("/v1/anomaly?regions=true&false_alarm_rate=0.001", files=alone)
        assert_problem(refused, 400, "malformed-request", "at least 999 are needed")
        answer = client.post("/v1/anomaly", files=alone, headers={"accept": "application/x-npy"})
        assert np.load(io.BytesIO(answer.content)).shape == (1, 24, 40)
        body: dict[str, Any] = {
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 24, 40, 1], "data": [0] * 960}]
        }
        outputs = client.post("/v2/models/tiny/infer", json=body | {"outputs": [{"name": "anomaly_map"}]}).json()[
            "outputs"
        ]
        assert [(each["name"], each["shape"]) for each in outputs] == [("anomaly_map", [1, 24, 40])]


def test_regions_need_a_memory_of_patches(client: httpx.Client) -> None:
    answer = client.post("/v1/anomaly?regions=true", files={"image": GOOD})
    assert_problem(answer, 409, "operation-unavailable", "has no memory of patches with a threshold for places")
    answer = client.post("/v1/anomaly", files={"image": GOOD}, headers={"accept": "application/x-npy"})
    assert np.load(io.BytesIO(answer.content)).ndim == 3, "the error of the reconstruction"


def test_predict_is_the_single_operations_bit_for_bit(client: httpx.Client) -> None:
    for file in FILES:
        [whole] = results(client.post("/v1/predict?top_k=2&heatmap=true", files={"image": file}))
        parts: dict[str, Any] = {}
        for path in ("classify?top_k=2&in_domain=true", "encode", "reconstruct", "anomaly?heatmap=true"):
            [result] = results(client.post(f"/v1/{path}", files={"image": file}))
            parts |= result
        assert whole == parts


@pytest.mark.parametrize(
    "operation", ["classify?in_domain=true", "encode", "reconstruct", "anomaly?heatmap=true", "predict"]
)
def test_many_together_are_as_each_alone(client: httpx.Client, operation: str) -> None:
    files = FILES[:8]
    together = results(client.post(f"/v1/{operation}", files=several(files)))
    for found, file in zip(together, files, strict=True):
        [alone] = results(client.post(f"/v1/{operation}", files={"image": file}))
        assert_close(found, alone)


def assert_close(found: Any, alone: Any) -> None:
    """Numbers to 1e-5; pictures to one grey level."""
    if isinstance(alone, dict):
        assert set(found) == set(alone)
        for key, value in alone.items():
            if key in ("image", "heatmap"):
                assert np.abs(picture(found[key]).astype(int) - picture(value)).max() <= 1
            else:
                assert_close(found[key], value)
    elif isinstance(alone, list | float):
        assert found == pytest.approx(alone, rel=1e-5, abs=1e-5)
    else:
        assert found == alone


def test_what_is_strange_is_not_in_the_domain(client: httpx.Client) -> None:
    files = [*FILES[:7], png(Image.new("L", (4, 6)))]  # black is nothing to an encoder that is linear
    for rate in (0.9, 0.05):
        verdicts = results(client.post(f"/v1/anomaly?false_alarm_rate={rate}", files=several(files)))
        found = results(client.post(f"/v1/classify?in_domain=true&false_alarm_rate={rate}", files=several(files)))
        assert [result["in_domain"] for result in found] == [not verdict["anomalous"] for verdict in verdicts]
        assert found[-1]["in_domain"] == (rate == 0.05)
    assert "in_domain" not in results(client.post("/v1/classify", files={"image": GOOD}))[0]


def test_a_rate_that_the_calibration_cannot_hold_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/anomaly?false_alarm_rate=0.001", files={"image": GOOD})
    assert "at least 999 are needed" in assert_problem(answer, 400, "malformed-request")["detail"]


@pytest.mark.parametrize(
    ("path", "accept", "files"),
    [
        ("classify", "text/html", 1),
        ("classify", "image/png", 1),
        ("encode", "image/png", 1),
        ("reconstruct", "image/png", 2),
        ("anomaly", "image/png", 2),
        ("predict", "application/x-npy", 1),
        ("decode", "text/plain", 0),
    ],
)
def test_a_form_that_there_is_not_is_406(client: httpx.Client, path: str, accept: str, files: int) -> None:
    headers = {"accept": accept}
    if files:
        answer = client.post(f"/v1/{path}", files=several(FILES[:files]), headers=headers)
    else:
        answer = client.post(f"/v1/{path}", json={"embeddings": [[0.0] * 5]}, headers=headers)
    assert "application/json" in assert_problem(answer, 406, "not-acceptable")["detail"]


@pytest.mark.parametrize(
    ("path", "lacks"),
    [
        ("classify", "head"),
        ("classify?explain=true", "head"),
        ("reconstruct", "decoder"),
        ("anomaly", "anomaly calibration"),
        ("decode", "decoder"),
        ("predict?heatmap=true", "decoder"),
        ("predict?explain=true", "linear head on feature maps"),
    ],
)
def test_what_a_model_lacks_is_409_and_the_rest_is_answered(tmp_path: Path, path: str, lacks: str) -> None:
    save_tiny(tmp_path, head=False, decoder=False)
    with serving(Settings(models=tmp_path)) as client:
        if path == "decode":
            answer = client.post("/v1/decode", json={"embeddings": [[0.0] * 5]})
        else:
            answer = client.post(f"/v1/{path}", files={"image": GOOD})
        detail = assert_problem(answer, 409, "operation-unavailable")["detail"]
        assert f"tiny@1 has no {lacks}" in detail
        assert "it can: encode, predict" in detail
        [result] = results(client.post("/v1/predict", files={"image": GOOD}))
        assert set(result) == {"embedding"}


def test_the_explanation_is_of_the_winning_label(tmp_path: Path) -> None:
    """The shipped default reads places; its shares are those of the graph, stretched over the image."""
    bundle = load(ROOT / "models/fashion-mnist/1")
    with serving(Settings(models=ROOT / "models", default_model="fashion-mnist")) as client:
        [result] = results(client.post("/v1/classify?explain=true", files={"image": GOOD}))
    shares = bundle.explain(bundle.encode(bundle.preprocess(GOOD)[None]))[0, result["index"]]
    map_ = picture(result["explanation"])
    assert map_.shape == (28, 28)
    corners = map_[[3, 3, 24, 24], [3, 24, 3, 24]]  # the middles of the corner cells
    expected = 127.5 + shares[[0, 0, 3, 3], [0, 3, 0, 3]] * 127.5 / np.abs(shares).max()
    assert np.abs(corners - expected).max() <= 12
