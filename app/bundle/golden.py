"""Golden pairs: drawn images, and what they gave where the bundle was made. Re-run wherever it is loaded."""

import io
from collections.abc import Callable

import numpy as np

from app.bundle.drawings import golden_files
from app.bundle.manifest import Golden
from app.errors import GoldenMismatch

SPEC = Golden(file="golden.npz", images=len(golden_files()), pixels=0, outputs=1e-4)

Preprocess = Callable[[bytes], np.ndarray]
Run = Callable[[np.ndarray], dict[str, np.ndarray]]  # (N, H, W, C) uint8 → every output of every graph, by name


def make(preprocess: Preprocess, run: Run) -> bytes:
    """The file that SPEC describes, an npz: `files` (joined), `lengths`, `pixels`, and one array per output."""
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


def verify(stored: dict[str, np.ndarray], golden: Golden, preprocess: Preprocess, run: Run, where: str) -> None:
    """Refuse the bundle unless this machine gives again what is stored; `where` is name/version/file."""
    try:
        ends = np.cumsum(stored["lengths"])
        files = [stored["files"][end - n : end].tobytes() for end, n in zip(ends, stored["lengths"], strict=True)]
        expected = stored["pixels"]
    except KeyError as error:
        raise GoldenMismatch(f"{where}: array {error} is missing") from None
    if len(files) != golden.images or len(expected) != golden.images:
        raise GoldenMismatch(f"{where}: holds {len(files)} images, the manifest says {golden.images}")
    pixels = np.stack([preprocess(data) for data in files])
    if pixels.shape != expected.shape:
        raise GoldenMismatch(f"{where}: pixels are {expected.shape}, this machine makes {pixels.shape}")
    off = np.abs(pixels.astype(int) - expected).max(axis=(1, 2, 3))
    if off.max() > golden.pixels:
        raise GoldenMismatch(
            f"{where}: image {off.argmax()} decodes to other pixels here, by up to {off.max()} grey levels "
            f"(allowed: {golden.pixels}): this machine's image library differs from the one the bundle was made with"
        )
    for name, values in run(pixels).items():
        before = stored.get(f"output:{name}")
        if before is None or before.shape != values.shape:
            raise GoldenMismatch(f"{where}: no array output:{name} of shape {values.shape}")
        allowed = golden.outputs * max(1.0, float(np.abs(before).max()))
        difference = float(np.abs(values - before).max())
        if not difference <= allowed:  # written so that NaN is refused
            raise GoldenMismatch(
                f"{where}: {name} is off by {difference:.3g} here (allowed: {allowed:.3g}): this bundle does not "
                "reproduce itself on this machine; export it again, or serve it with the onnxruntime it was made with"
            )
