"""The next version of a bundle, with some files and fields of the manifest changed. No torch."""

from collections.abc import Collection, Mapping
from pathlib import Path

from app.bundle import Manifest, save

_MADE_BY_SAVE = frozenset({"schema_version", "golden", "files", "seal"})


def revised(
    folder: Path,
    before: Manifest,
    after: Manifest,
    files: Mapping[str, bytes],
    left_out: Collection[str] = (),
    models: Path | None = None,
) -> Path:
    """The folder of the version after the one in `folder`: all its files but those `left_out`, and `files` over them.

    It is published beside the one before, or in `models`. Golden tolerances stay those of `before`; the pairs are made
    anew where a graph is new.
    """
    kept = set(before.files) - {before.golden.file, *left_out, *files}
    contents = {name: (folder / name).read_bytes() for name in sorted(kept)} | dict(files)
    fields = {name: getattr(after, name) for name in Manifest.model_fields if name not in _MADE_BY_SAVE}
    tensors = set(after.graphs.tensors())
    tolerances = {name: off for name, off in before.golden.outputs.items() if name in tensors}
    models = models or folder.parent.parent
    graphs = {graph.file for _, graph in after.graphs if graph is not None}
    same = before.graphs == after.graphs and graphs.isdisjoint(files)
    golden_file = (folder / before.golden.file).read_bytes() if same else None
    return save(models, folder.parent.name, fields, contents, tolerances=tolerances, golden_file=golden_file)
