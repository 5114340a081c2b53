"""Which bundles are loaded, and which of them a request means."""

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from app.bundle.session import CPU
from app.bundle.store import load, names, versions
from app.errors import BundleError, NotReady, UnknownModel
from app.inference.model import Model, Ran
from app.observability import log

MAX_BATCH = 32  # images that one run of a graph takes


class Repository:
    """`open` loads every version there is; a bundle that is refused is logged, remembered, and not served."""

    def __init__(
        self,
        models: Path,
        default: str | None = None,
        threads: int | None = None,
        providers: Sequence[str] = CPU,
        max_batch: int = MAX_BATCH,
        pool: Executor | None = None,
        ran: Ran = lambda *_: None,
    ) -> None:
        """`pool` runs the batches that would keep the event loop too long."""
        self.models, self._default, self._threads, self._providers = models, default, threads, providers
        self._max_batch, self._pool, self._ran = max_batch, pool or ThreadPoolExecutor(), ran
        self._loaded: dict[str, dict[int, Model]] = {}
        self.refused: dict[str, str] = {}  # "name/version" → why

    def open(self) -> None:
        for name in names(self.models) if self.models.is_dir() else ():
            for version in versions(self.models / name):
                try:
                    model = self._load(name, version)
                except BundleError as error:
                    self.refused[f"{name}/{version}"] = str(error)
                    log.error("refused %s", error)
                except Exception as error:
                    self.refused[f"{name}/{version}"] = f"{name}/{version}: {type(error).__name__}; the log has it"
                    log.exception("refused %s/%d", name, version)  # one bad bundle never stops the others
                else:
                    self._loaded.setdefault(name, {})[version] = model
                    bundle, milliseconds = model.bundle, 1000 * model.seconds
                    told = "loaded %s %s on %s, %.2f ms an image"
                    log.info(told, model.name, bundle.digest[:12], bundle.encoder.provider, milliseconds)

    def _load(self, name: str, version: int) -> Model:
        bundle = load(self.models / name / str(version), self._threads, self._providers)
        return Model(bundle, self._max_batch, self._pool, self._ran)

    @property
    def ready(self) -> bool:
        return bool(self._loaded) and (self._default is None or self._default in self._loaded)

    @property
    def default(self) -> str | None:
        return self._default or min(self._loaded, default=None)

    def all(self) -> list[Model]:
        """By name, then version, rising."""
        return [versions[number] for _, versions in sorted(self._loaded.items()) for number in sorted(versions)]

    def get(self, model: str | None) -> Model:
        """`model` is name, name@version, or None for the default; without a version the highest is meant."""
        wanted = model or self.default
        if wanted is None:
            raise NotReady("no model is loaded")
        name, at, version = wanted.partition("@")
        loaded = self._loaded.get(name)
        if loaded is None:
            raise UnknownModel(f"there is no model {name[:100]!r}; loaded: {self._listed()}")
        if not at:
            return loaded[max(loaded)]
        found = next((loaded[number] for number in loaded if str(number) == version), None)
        if found is None:
            raise UnknownModel(f"model {name!r} has no version {version[:20]!r}; loaded: {self._listed()}")
        return found

    def _listed(self) -> str:
        return ", ".join(f"{model.bundle.name}@{model.bundle.version}" for model in self.all()) or "none"
