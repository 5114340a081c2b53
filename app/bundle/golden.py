"""Golden pairs: drawn images, and what they gave where the bundle was made. Re-run wherever it is loaded."""

import io
from collections.abc import Callable, Iterable

import numpy as np

from app.bundle.drawings import golden_files
from app.bundle.manifest import Golden
from app.errors import GoldenMismatch, ImageError

FILE = "golden.npz"
TOLERANCE = 1e-4  # of a tensor in fp32; an INT8 graph states its own step

Preprocess = Callable[[bytes], np.ndarray]
Run = Callable[[np.ndarray], dict[str, np.ndarray]]  # (N, H, W, C) uint8 → every output of every graph, by name


def make(preprocess: Preprocess, run: Run) -> bytes:
    """The golden file, an npz: `files` (joined), `lengths`, `pixels`, and one array per output."""
    files = golden_files()
    pixels = np.stack([preprocess(data) for data in files])
    arrays = {
        "files": np.frombuffer(b"".join(files), np.uint8),
        "lengths": np.array([len(data) for data in files]),
        "pixels": pixels,
        **{f"output:{name}": values for name, values in run(pixels).items()},
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def spec(tensors: Iterable[str], tolerances: dict[str, float]) -> Golden:
    """The manifest's part: pixels exact, every tensor within its tolerance."""
    outputs = {name: tolerances.get(name, TOLERANCE) for name in tensors}
    return Golden(file=FILE, images=len(golden_files()), pixels=0, outputs=outputs)


def verify(stored: dict[str, np.ndarray], golden: Golden, preprocess: Preprocess, run: Run, where: str) -> None:
    """Refuse the bundle unless this machine gives again what is stored; `where` is name/version/file."""
    joined, lengths = _array(stored, "files", np.uint8, 1, where), _array(stored, "lengths", np.int64, 1, where)
    expected = _array(stored, "pixels", np.uint8, 4, where)
    if len(lengths) != golden.images or len(expected) != golden.images:
        raise GoldenMismatch(f"{where}: holds {len(lengths)} images, the manifest says {golden.images}")
    if lengths.min() < 0 or lengths.sum() != len(joined):
        raise GoldenMismatch(f"{where}: lengths do not add up to files")
    files = [joined[end - n : end].tobytes() for end, n in zip(lengths.cumsum(), lengths, strict=True)]
    try:
        pixels = np.stack([preprocess(data) for data in files])
    except ImageError as error:
        raise GoldenMismatch(f"{where}: an image of it cannot be decoded here: {error}") from None
    if pixels.shape != expected.shape:
        raise GoldenMismatch(f"{where}: pixels are {expected.shape}, this machine makes {pixels.shape}")
    off = np.abs(pixels.astype(int) - expected).max(axis=(1, 2, 3))
    if off.max() > golden.pixels:
        raise GoldenMismatch(
            f"{where}: image {off.argmax()} decodes to other pixels here, by up to {off.max()} grey levels "
            f"(allowed: {golden.pixels}): this machine's image library differs from the one the bundle was made with"
        )
    for name, values in run(pixels).items():
        before = _array(stored, f"output:{name}", np.float32, values.ndim, where)
        if before.shape != values.shape or not np.isfinite(before).all():
            raise GoldenMismatch(f"{where}: output:{name} is not finite numbers of shape {values.shape}")
        allowed = golden.outputs[name] * max(1.0, float(np.abs(before).max()))
        difference = float(np.abs(values - before).max())
        if not difference <= allowed:  # written so that NaN is refused
            raise GoldenMismatch(
                f"{where}: {name} is off by {difference:.3g} here (allowed: {allowed:.3g}): this bundle does not "
                "reproduce itself on this machine; export it again, or serve it with the onnxruntime it was made with"
            )


def _array(stored: dict[str, np.ndarray], name: str, dtype: type, dimensions: int, where: str) -> np.ndarray:
    array = stored.get(name)
    if array is None or array.dtype != dtype or array.ndim != dimensions:
        found = "missing" if array is None else f"{array.dtype} {array.shape}"
        raise GoldenMismatch(
            f"{where}: array {name} is {found}; {np.dtype(dtype)} of {dimensions} dimensions is expected"
        )
    return array
