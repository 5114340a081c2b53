"""Bundles on disk, in models/<name>/<version>/. A bundle is loaded only if it is complete, and saved atomically."""

import hashlib
import io
import os
import re
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.bundle import golden
from app.bundle.bundle import CARD_FILE, REPORT_FILE, Bundle
from app.bundle.drift import EMBEDDINGS, DriftReference
from app.bundle.latent_map import LatentMap
from app.bundle.manifest import MANIFEST_FILE, Graph, Manifest, refuse_unsafe
from app.bundle.scoring import AnomalyScorer, thumbnail_size
from app.bundle.session import CPU, Session, cpu_limit
from app.errors import BundleError, BundleExists, BundleFileMissing, ChecksumMismatch, ManifestInvalid, ReferenceInvalid

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_MANIFEST_LIMIT = 4 << 20
_ARRAYS_LIMIT = 1 << 30


def load(folder: Path, threads: int | None = None, providers: Sequence[str] = CPU) -> Bundle:
    """The bundle in models/<name>/<version>/, fully verified; `threads` None means the container's CPU limit.

    Each file is read once, so that the bytes that run are the bytes whose checksum was verified.
    """
    name, version = _identity(folder)
    where = f"{name}/{version}"
    text = _read(folder, MANIFEST_FILE, where, _MANIFEST_LIMIT)
    manifest = Manifest.parse(text, where)
    contents = {file: _read(folder, file, where) for file in manifest.files}
    for file, data in contents.items():
        actual = hashlib.sha256(data).hexdigest()
        if actual != manifest.files[file]:
            raise ChecksumMismatch(
                f"{where}/{file}: SHA-256 is {actual[:12]}…, the manifest says {manifest.files[file][:12]}…: "
                "the file was changed or damaged after export; copy the bundle again"
            )

    digest = hashlib.sha256(text).hexdigest()
    bundle = _assemble(name, int(version), digest, manifest, contents, threads, providers)
    file = manifest.golden.file
    stored = _arrays(contents[file], f"{where}/{file}")
    golden.verify(stored, manifest.golden, bundle.preprocess, bundle.run_all, f"{where}/{file}")
    return bundle


def _assemble(
    name: str,
    version: int,
    digest: str,
    manifest: Manifest,
    contents: dict[str, bytes],
    threads: int | None = None,
    providers: Sequence[str] = CPU,
) -> Bundle:
    """A bundle from files in memory; this does not run its golden pairs."""
    where = f"{name}/{version}"

    def session(graph: Graph | None) -> Session | None:
        if graph is None:
            return None
        return Session(contents[graph.file], graph, f"{where}/{graph.file}", threads or cpu_limit(), providers)

    encoder = session(manifest.graphs.encoder)
    assert encoder is not None  # the manifest always has one
    scorer = drift = latent_map = None
    if manifest.reference is not None:
        reference = _arrays(contents[manifest.reference], f"{where}/{manifest.reference}")
        sizes = {tensor.name: tensor.shape[-1] for tensor in manifest.graphs.encoder.outputs}
        sizes["thumbnail"] = thumbnail_size(manifest.input.height, manifest.input.width, manifest.input.channels)
        try:
            if manifest.anomaly is not None:
                scorer = AnomalyScorer(manifest.anomaly, reference, sizes)
            if EMBEDDINGS in reference:
                drift = DriftReference(reference, manifest.latent_size)
            labels = len(manifest.classifier.labels) if manifest.classifier else None
            latent_map = LatentMap.of(reference, manifest.latent_size, labels)
        except ValueError as error:
            raise ReferenceInvalid(f"{where}/{manifest.reference}: {error}") from None
    decoder, head, explainer = (session(getattr(manifest.graphs, part)) for part in ("decoder", "head", "explain"))
    documents = {file: contents[file] for file in (CARD_FILE, REPORT_FILE) if file in contents}
    return Bundle(
        name, version, digest, manifest, encoder, decoder, head, explainer, scorer, drift, latent_map, documents
    )


def save(
    models: Path,
    name: str,
    fields: dict[str, Any],
    files: dict[str, bytes],
    version: int | None = None,
    tolerances: dict[str, float] | None = None,
) -> Path:
    """Writes models/<name>/<version>/ atomically; `version` None takes the next free number.

    `fields` are the manifest's without `golden`, `files` and `seal`, which are computed here. `tolerances`: golden
    tensor → tolerance, where it differs from golden.TOLERANCE. The bundle is written to a temporary folder and loaded
    from there, golden pairs included, before it gets its name. An existing version is never overwritten.
    """
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"{name!r} cannot name a bundle: use at most 64 of a to z, 0 to 9, dot, dash and underscore, "
            "beginning with a letter or digit"
        )
    for file in files:
        refuse_unsafe(file, f"{name}: field files")

    def manifest(golden_file: bytes) -> Manifest:
        sums = {f: hashlib.sha256(data).hexdigest() for f, data in {**files, golden.FILE: golden_file}.items()}
        pairs = golden.spec(fields["graphs"].tensors(), tolerances or {})
        return Manifest.sealed(**fields, golden=pairs, files=sums)

    proof = _assemble(name, version or 1, "", manifest(b""), files)
    golden_file = golden.make(proof.preprocess, proof.run_all)
    text = manifest(golden_file).to_json()
    files = {**files, golden.FILE: golden_file}
    home = models / name
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=home) as temporary:
            staged = Path(temporary) / name / "1"
            staged.mkdir(parents=True)
            for file, data in {**files, MANIFEST_FILE: text.encode()}.items():
                _write(staged / file, data)
            load(staged)
            return _give_version(staged, home, version)
    except OSError as error:
        raise BundleError(f"{home}: the bundle cannot be written: {error.strerror}; nothing was changed") from error


def _give_version(staged: Path, home: Path, version: int | None) -> Path:
    """Renames the folder, which makes the bundle visible; tries the next number if another export took this one."""
    while True:
        target = home / str(version or max(versions(home), default=0) + 1)
        try:
            if target.exists():  # rename() would replace an empty folder
                raise FileExistsError
            staged.rename(target)
        except OSError:
            if not target.exists():
                raise
            if version is not None:
                raise BundleExists(f"{home.name}/{version} already exists: bundles are never overwritten") from None
        else:
            _sync(home)
            return target


def versions(home: Path) -> list[int]:
    """The version numbers in models/<name>/, ascending, complete or not; entries with other names are ignored."""
    return sorted(int(entry.name) for entry in home.iterdir() if _VERSION.fullmatch(entry.name))


def names(models: Path) -> list[str]:
    return sorted(entry.name for entry in models.iterdir() if _NAME.fullmatch(entry.name) and entry.is_dir())


def _identity(folder: Path) -> tuple[str, str]:
    name, version = folder.parent.name, folder.name
    if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
        raise BundleError(
            f"{name}/{version}: not the folder of a bundle, which is <name>/<version>/ with a whole number from 1"
        )
    return name, version


def _read(folder: Path, file: str, where: str, limit: int | None = None) -> bytes:
    path = folder / file
    try:
        if not path.is_file():  # reading a pipe or device might never end
            raise FileNotFoundError
        if limit is not None and path.stat().st_size > limit:
            raise ManifestInvalid(f"{where}/{file}: larger than {limit:,} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleFileMissing(f"{where}/{file}: missing, or not a file") from None
    except OSError as error:
        raise BundleFileMissing(f"{where}/{file}: cannot be read: {error.strerror}") from None


def _arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > _ARRAYS_LIMIT:
                raise ValueError(f"it unpacks to more than {_ARRAYS_LIMIT:,} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # zip, zlib and numpy errors share no base; a shape of terabytes is a MemoryError
        raise ReferenceInvalid(f"{where}: not an npz file of plain arrays: {error}") from None


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
