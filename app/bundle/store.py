"""Bundles on disk, in models/<name>/<version>/. A bundle is loaded only if it is complete, and saved atomically."""

import hashlib
import io
import os
import re
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.bundle import golden, regions
from app.bundle.bundle import CARD_FILE, REPORT_FILE, Bundle
from app.bundle.drift import EMBEDDINGS, DriftReference
from app.bundle.index import Index
from app.bundle.latent_map import LatentMap
from app.bundle.manifest import MANIFEST_FILE, Graph, Manifest, refuse_unsafe
from app.bundle.scoring import AnomalyScorer, thumbnail_size
from app.bundle.session import CPU, Session, cpu_limit, prefer_gpu
from app.bundle.sets import ARRAYS as SETS
from app.bundle.sets import PredictionSets
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
    bundle = _assemble(
        name, int(version), digest=digest, manifest=manifest, contents=contents, threads=threads, providers=providers
    )
    file = manifest.golden.file
    stored = _arrays(contents[file], f"{where}/{file}")
    golden.verify(stored, manifest.golden, preprocess=bundle.golden_input, run=bundle.run_all, where=f"{where}/{file}")
    return bundle


def golden_pairs(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """The golden arrays of the bundle that was loaded from there."""
    name, version = _identity(folder)
    where = f"{name}/{version}"
    return _arrays(_read(folder, manifest.golden.file, where), f"{where}/{manifest.golden.file}")


def graph_bytes(folder: Path, graph: Graph) -> bytes:
    """The ONNX file of a graph. Whether it is the one that was loaded: Session.digest."""
    name, version = _identity(folder)
    return _read(folder, graph.file, f"{name}/{version}")


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
        return Session(
            contents[graph.file],
            graph,
            where=f"{where}/{graph.file}",
            threads=threads or cpu_limit(),
            providers=providers,
        )

    encoder = session(manifest.graphs.encoder)
    assert encoder is not None  # the manifest always has one
    references = _References()
    if manifest.reference is not None:
        arrays = _arrays(contents[manifest.reference], f"{where}/{manifest.reference}")
        references = _references(manifest, arrays, f"{where}/{manifest.reference}")
    decoder, head, explainer, patches = (
        session(getattr(manifest.graphs, part)) for part in ("decoder", "head", "explain", "patches")
    )
    documents = {file: contents[file] for file in (CARD_FILE, REPORT_FILE) if file in contents}
    return Bundle(
        name,
        version,
        digest,
        manifest,
        encoder=encoder,
        decoder=decoder,
        head=head,
        explainer=explainer,
        patches=patches,
        documents=documents,
        index=_index(manifest, contents, where),
        **references._asdict(),
    )


def _index(manifest: Manifest, contents: dict[str, bytes], where: str) -> Index | None:
    if manifest.index is None:
        return None
    try:
        return Index(_arrays(contents[manifest.index], f"{where}/{manifest.index}"), manifest.latent_size)
    except ValueError as error:
        raise ReferenceInvalid(f"{where}/{manifest.index}: {error}") from None


class _References(NamedTuple):
    """What is made of the reference file."""

    scorer: AnomalyScorer | None = None
    peaks: np.ndarray | None = None
    drift: DriftReference | None = None
    map: LatentMap | None = None
    sets: PredictionSets | None = None


def _references(manifest: Manifest, arrays: dict[str, np.ndarray], where: str) -> _References:
    sizes = {tensor.name: tensor.shape[-1] for tensor in manifest.graphs.encoded}
    sizes["thumbnail"] = thumbnail_size(manifest.input.height, manifest.input.width, manifest.input.channels)
    labels = len(manifest.classifier.labels) if manifest.classifier else None
    try:
        return _References(
            scorer=AnomalyScorer(manifest.anomaly, arrays, sizes) if manifest.anomaly is not None else None,
            peaks=regions.peaks_of(arrays)
            if manifest.anomaly is not None and manifest.graphs.patches is not None
            else None,
            drift=DriftReference(arrays, manifest.latent_size) if EMBEDDINGS in arrays else None,
            map=LatentMap.of(arrays, manifest.latent_size, labels),
            sets=PredictionSets(arrays, labels) if labels is not None and SETS[0] in arrays else None,
        )
    except ValueError as error:
        raise ReferenceInvalid(f"{where}: {error}") from None


def assemble(
    name: str, fields: dict[str, Any], files: dict[str, bytes], tolerances: dict[str, float] | None = None
) -> Bundle:
    """A bundle in memory, from what `save` takes: to be measured before it is saved. Its golden pairs are not made."""
    manifest = _manifest(fields, files, b"", tolerances or {})
    return _assemble(name, 1, digest="", manifest=manifest, contents=files, providers=prefer_gpu())


def with_references(bundle: Bundle, fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> Bundle:
    """The same graphs, not loaded again, with these fields of the manifest and a reference file of these arrays."""
    manifest = bundle.manifest.model_copy(update=fields)
    references = _references(manifest, arrays, f"{bundle.name}/{bundle.version}/{manifest.reference}")
    return replace(bundle, manifest=manifest, **references._asdict())


def with_patches(bundle: Bundle, graph: Graph, model: bytes) -> Bundle:
    """The same bundle, its other graphs not loaded again, with this memory of patches."""
    graphs = bundle.manifest.graphs.model_copy(update={"patches": graph})
    where = f"{bundle.name}/{bundle.version}/{graph.file}"
    session = Session(model, graph, where, threads=cpu_limit(), providers=(bundle.encoder.provider,))
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"graphs": graphs}), patches=session)


def _manifest(
    fields: dict[str, Any], files: dict[str, bytes], golden_file: bytes, tolerances: dict[str, float]
) -> Manifest:
    sums = {f: hashlib.sha256(data).hexdigest() for f, data in {**files, golden.FILE: golden_file}.items()}
    pairs = golden.spec(fields["graphs"].tensors(), tolerances)
    return Manifest.sealed(**fields, golden=pairs, files=sums)


def save(
    models: Path,
    name: str,
    fields: dict[str, Any],
    files: dict[str, bytes],
    version: int | None = None,
    tolerances: dict[str, float] | None = None,
    golden_file: bytes | None = None,
) -> Path:
    """Writes models/<name>/<version>/ atomically; `version` None takes the next free number.

    `fields` are the manifest's without `golden`, `files` and `seal`, which are computed here. `tolerances`: golden
    tensor → tolerance, where it differs from golden.TOLERANCE. `golden_file`: golden pairs of the same graphs that were
    made before; None makes them. The bundle is written to a temporary folder and loaded from there, golden pairs
    included, before it gets its name. An existing version is never overwritten.
    """
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"{name!r} cannot name a bundle: use at most 64 of a to z, 0 to 9, dot, dash and underscore, "
            "beginning with a letter or digit"
        )
    for file in files:
        refuse_unsafe(file, f"{name}: field files")

    proof = _assemble(
        name, version or 1, digest="", manifest=_manifest(fields, files, b"", tolerances or {}), contents=files
    )
    golden_file = golden_file or golden.make(proof.golden_input, proof.run_all)
    text = _manifest(fields, files, golden_file, tolerances or {}).to_json()
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
