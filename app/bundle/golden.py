"""Golden pairs: drawn images and their outputs at export. Every load runs them again and compares."""

import io
from collections.abc import Callable, Iterable

import numpy as np

from app.bundle.drawings import golden_files
from app.bundle.manifest import Golden
from app.errors import GoldenMismatch, ImageError

FILE = "golden.npz"
TOLERANCE = 1e-4  # for fp32 tensors; an INT8 graph's manifest states its own

Preprocess = Callable[[bytes], np.ndarray]
Run = Callable[[np.ndarray], dict[str, np.ndarray]]  # (N, H, W, C) uint8 → every output of every graph, by name


def make(preprocess: Preprocess, run: Run) -> bytes:
    """The golden npz: `files` (concatenated), `lengths`, `pixels`, and one array `output:<tensor>` per output."""
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
    """The manifest's `golden`: pixels are exact, each tensor has its tolerance."""
    outputs = {name: tolerances.get(name, TOLERANCE) for name in tensors}
    return Golden(file=FILE, images=len(golden_files()), pixels=0, outputs=outputs)


def verify(stored: dict[str, np.ndarray], golden: Golden, preprocess: Preprocess, run: Run, where: str) -> None:
    """Raises GoldenMismatch unless this machine reproduces the stored outputs; `where` is name/version/file."""
    joined, lengths = (
        _array(stored, "files", dtype=np.uint8, dimensions=1, where=where),
        _array(stored, "lengths", dtype=np.int64, dimensions=1, where=where),
    )
    expected = _array(stored, "pixels", dtype=np.uint8, dimensions=4, where=where)
    if len(lengths) != golden.images or len(expected) != golden.images:
        raise GoldenMismatch(f"{where}: has {len(lengths)} images, the manifest says {golden.images}")
    if lengths.min() < 0 or lengths.sum() != len(joined):
        raise GoldenMismatch(f"{where}: array lengths does not add up to the size of array files")
    files = [joined[end - n : end].tobytes() for end, n in zip(lengths.cumsum(), lengths, strict=True)]
    try:
        pixels = np.stack([preprocess(data) for data in files])
    except ImageError as error:
        raise GoldenMismatch(f"{where}: a golden image does not decode on this machine: {error}") from None
    if pixels.shape != expected.shape:
        raise GoldenMismatch(f"{where}: array pixels has shape {expected.shape}, this machine gives {pixels.shape}")
    differences = np.abs(pixels.astype(int) - expected).max(axis=(1, 2, 3))
    if differences.max() > golden.pixels:
        raise GoldenMismatch(
            f"{where}: image {differences.argmax()} decodes to other pixels here, by up to {differences.max()} grey "
            f"levels (allowed: {golden.pixels}): this machine's image library differs from the one at export"
        )
    for name, values in run(pixels).items():
        before = _array(stored, f"output:{name}", dtype=np.float32, dimensions=values.ndim, where=where)
        if before.shape != values.shape or not np.isfinite(before).all():
            raise GoldenMismatch(f"{where}: array output:{name} must be finite numbers of shape {values.shape}")
        allowed = golden.outputs[name] * max(1.0, float(np.abs(before).max()))
        difference = float(np.abs(values - before).max())
        if not difference <= allowed:  # NaN must be refused too
            raise GoldenMismatch(
                f"{where}: {name} is off by {difference:.3g} here (allowed: {allowed:.3g}): the bundle does not "
                "reproduce itself on this machine; export it again, or serve it with the onnxruntime of its export"
            )


def _array(stored: dict[str, np.ndarray], name: str, dtype: type, dimensions: int, where: str) -> np.ndarray:
    array = stored.get(name)
    if array is None or array.dtype != dtype or array.ndim != dimensions:
        state = "missing" if array is None else f"{array.dtype} {array.shape}"
        raise GoldenMismatch(f"{where}: array {name} is {state}; it must be {np.dtype(dtype)} of {dimensions} axes")
    return array
