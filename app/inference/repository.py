"""Which bundles are loaded, and which of them a request means."""

from pathlib import Path

from app.bundle.bundle import Bundle
from app.bundle.store import load, names, versions
from app.errors import BundleError, NotReady, UnknownModel
from app.observability import log


class Repository:
    """`open` loads every version there is; a bundle that is refused is logged, remembered, and not served."""

    def __init__(self, models: Path, default: str | None = None, threads: int | None = None) -> None:
        self.models, self._default, self._threads = models, default, threads
        self._bundles: dict[str, dict[int, Bundle]] = {}
        self.refused: dict[str, str] = {}  # "name/version" → why

    def open(self) -> None:
        for name in names(self.models) if self.models.is_dir() else ():
            for version in versions(self.models / name):
                try:
                    bundle = load(self.models / name / str(version), self._threads)
                except BundleError as error:
                    self.refused[f"{name}/{version}"] = str(error)
                    log.error("refused %s", error)
                except Exception as error:
                    self.refused[f"{name}/{version}"] = f"{name}/{version}: {type(error).__name__}; the log has it"
                    log.exception("refused %s/%d", name, version)  # one bad bundle never stops the others
                else:
                    self._bundles.setdefault(name, {})[version] = bundle
                    log.info("loaded %s@%d %s", name, version, bundle.digest[:12])

    @property
    def ready(self) -> bool:
        return bool(self._bundles) and (self._default is None or self._default in self._bundles)

    @property
    def default(self) -> str | None:
        return self._default or min(self._bundles, default=None)

    def all(self) -> list[Bundle]:
        """By name, then version, rising."""
        return [
            self._bundles[name][version] for name in sorted(self._bundles) for version in sorted(self._bundles[name])
        ]

    def get(self, model: str | None) -> Bundle:
        """`model` is name, name@version, or None for the default; without a version the highest is meant."""
        wanted = model or self.default
        if wanted is None:
            raise NotReady("no model is loaded")
        name, _, version = wanted.partition("@")
        loaded = self._bundles.get(name)
        if loaded is None:
            raise UnknownModel(f"there is no model {name[:100]!r}; loaded: {self._loaded()}")
        if not version:
            return loaded[max(loaded)]
        bundle = next((loaded[number] for number in loaded if str(number) == version), None)
        if bundle is None:
            raise UnknownModel(f"model {name!r} has no version {version[:20]!r}; loaded: {self._loaded()}")
        return bundle

    def _loaded(self) -> str:
        return ", ".join(f"{b.name}@{b.version}" for b in self.all()) or "none"
