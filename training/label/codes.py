"""Codes of images by a frozen encoder, kept in a file: an image is encoded once, wherever it is moved."""

import hashlib
import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.bundle import Bundle, load, prefer_gpu
from app.bundle.store import versions
from training.data.checks import NEAR, thumbnails
from training.data.folder import MOST_BROKEN, read_survey
from training.errors import TrainingError, listed, printable
from training.label.pool import Pool
from training.measure.outputs import outputs_of
from training.progress import say, track
from training.recipe import Backbone, Input, Network
from training.shots.bases import bundles_in

BACKBONE: Backbone = "efficientnet-lite0"
_INPUT = 224  # pixels of a side, as the published weights were trained
_SIDE, _COARSE = 32, 8  # of the thumbnails by which copies are known
_BLOCK = 4096  # images, after which codes are kept
_CHUNK = 1024
_ALIKE = 0.9  # least cosine of two codes of one picture: drawings on white differ in few pixels


@dataclass(frozen=True)
class Codes:
    """Of images, in order; those that cannot be read are left out of the pool."""

    pool: Pool
    codes: np.ndarray  # (N, D) float32, of length 1
    thumbnails: np.ndarray  # (N, 32²) uint8


def encoder(base: Path | None, outside: bool, out: Path) -> Bundle:
    """The bundle that encodes: the one given, or the published network, which is put into `out`."""
    if base is not None:
        found = bundles_in(base)
        if len(found) > 1:
            raise TrainingError(f"--base {base}: {len(found)} bundles: name one, as in models/NAME/1")
        bundle = load(found[0], providers=prefer_gpu())
        if bundle.tiled:
            raise TrainingError(f"--base {base}: cuts pictures into tiles, whose codes say little of the whole")
        if not outside and bundle.manifest.provenance.weights is not None:
            raise TrainingError(f"--base {base}: began with weights that others published: name another bundle")
        return bundle
    if not outside:
        raise TrainingError(
            "--no-outside-weights needs --base models/NAME/VERSION: a bundle of your own that encodes the images"
        )
    home = out / "models" / BACKBONE
    known = versions(home) if home.is_dir() else ()
    if known:
        return load(home / str(known[-1]), providers=prefer_gpu())
    from training.publish import base as bases  # torch, which later calls do without

    taken = Input(height=_INPUT, width=_INPUT, channels=3, resize="pad")
    return load(bases.publish(Network(backbone=BACKBONE), taken, out / "models", BACKBONE))


def codes_of(bundle: Bundle, pool: Pool, out: Path) -> Codes:
    """Each image is encoded once: kept codes are found by what is in the file, not by its name or its time."""
    kept = _Kept.read(out / f"codes-{bundle.encoder.digest.hex()[:12]}.npz")
    keys = [_key(path) for path in track(pool.paths, "reading", len(pool))]
    first = {key: row for row, key in reversed(list(enumerate(keys))) if key is not None and key not in kept.rows}
    new = sorted(first.values())
    for start in range(0, len(new), _BLOCK):
        part = pool.take(new[start : start + _BLOCK])
        read = read_survey(part.found, bundle.manifest.input, most_broken=1)
        if not len(read):
            continue
        codes = outputs_of(bundle, read, "codes", ("embedding",)).encoded["embedding"]
        at = dict(zip(part.names, new[start : start + _BLOCK], strict=True))
        kept = kept.more(
            [keys[at[name]] or b"" for name in read.names],
            codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12),
            np.rint(thumbnails(read.images, _SIDE)).astype(np.uint8),
        )
        kept.write()
    rows = [row for row, key in enumerate(keys) if key is not None and key in kept.rows]
    if (broken := len(pool) - len(rows)) > MOST_BROKEN * len(pool):
        names = listed([pool.names[row] for row in sorted({*range(len(pool))} - {*rows})])
        shown = printable(str(pool.found.root))
        raise TrainingError(
            f"{shown}: {broken:,} of {len(pool):,} images cannot be read: {names}: repair or remove them"
        )
    at_row = np.array([kept.rows[keys[row] or b""] for row in rows])
    return Codes(pool.take(rows), kept.codes[at_row], kept.thumbnails[at_row])


def _key(path: Path) -> bytes | None:
    """Of the bytes of a file; None where they cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return None


@dataclass(frozen=True)
class _Kept:
    file: Path
    rows: dict[bytes, int]  # a file's key → its row
    codes: np.ndarray
    thumbnails: np.ndarray

    @classmethod
    def read(cls, file: Path) -> "_Kept":
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                rows = {bytes(key): row for row, key in enumerate(stored["keys"])}
                return cls(file, rows, *(stored[name] for name in ("codes", "thumbnails")))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            say(f"{printable(str(file))}: cannot be read; the images are encoded again")
        none = np.zeros((0, 0), np.float32)
        return cls(file, {}, codes=none, thumbnails=none)

    def more(self, keys: list[bytes], codes: np.ndarray, small: np.ndarray) -> "_Kept":
        rows = self.rows | {key: len(self.rows) + number for number, key in enumerate(keys)}
        if self.rows:
            codes = np.concatenate([self.codes, codes])
            small = np.concatenate([self.thumbnails, small])
        return replace(self, rows=rows, codes=codes, thumbnails=small)

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        keys = np.array([list(key) for key in self.rows], np.uint8)
        with part.open("wb") as file:
            np.savez(file, keys=keys, codes=self.codes, thumbnails=self.thumbnails)
        os.replace(part, self.file)


def copies(codes: Codes) -> np.ndarray:
    """(N,) ids, equal for copies: pictures within NEAR grey levels of the first of them, as saving twice makes them.

    Not of each other: the frames of a film would be one picture.
    """
    fine = codes.thumbnails.astype(np.float32)
    cells = fine.reshape((len(fine), _COARSE, _SIDE // _COARSE, _COARSE, _SIDE // _COARSE))
    coarse = cells.mean(axis=(2, 4)).reshape(len(fine), _COARSE**2)
    norms = np.square(coarse).sum(axis=1)
    group = np.full(len(fine), -1)
    starts = range(0, len(coarse), _CHUNK)
    for start in track(starts, "copies", len(starts)):
        part = slice(start, start + _CHUNK)
        # Averages of cells differ no more than the cells do; the half allows for rounding.
        near = norms[part, None] + norms - 2 * coarse[part] @ coarse.T <= (NEAR**2 + 0.5) * _COARSE**2
        for row in range(start, start + len(near)):
            if group[row] >= 0:
                continue
            others = np.flatnonzero(near[row - start] & (group < 0))
            alike = np.square(fine[others] - fine[row]).mean(axis=1) <= NEAR**2
            group[others[alike & (codes.codes[others] @ codes.codes[row] >= _ALIKE)]] = row
            group[row] = row
    return group
