"""Which bundles are loaded, and which of them a request means. They come and go while requests are answered.

A version is read, verified and warmed in a thread, and swapped in by one assignment on the event loop. What it
replaces is kept alive by the requests that run on it, and freed with the last of them.
"""

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from app.bundle.session import CPU
from app.bundle.store import load
from app.errors import BundleError, LoadingNotAllowed, NotReady, OperationUnavailable, UnknownModel
from app.inference.drift import Drift
from app.inference.folder import Key, Watch, found
from app.inference.model import Model
from app.settings import PREFIX, ModelControl
from app.telemetry.metrics import Metrics, Served
from app.telemetry.requests import log

MAX_BATCH = 32  # images that one run of a graph takes
State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Entry:
    """A version that is loaded, or lies in the folder; `reason` says why it is not, or was refused when last tried."""

    name: str
    version: int
    state: State
    reason: str


class Repository:
    """`open` loads every version there is; a bundle that is refused is logged, remembered, and not served.

    After that, by `control`: nothing changes (none), `poll` follows the folder, or `load` and `unload` are obeyed
    (explicit). All of it belongs to one event loop.
    """

    def __init__(
        self,
        models: Path,
        default: str | None = None,
        threads: int | None = None,
        providers: Sequence[str] = CPU,
        max_batch: int = MAX_BATCH,
        pool: Executor | None = None,
        metrics: Metrics | None = None,
        control: ModelControl = "none",
        on_freed: Callable[[], None] = lambda: None,
    ) -> None:
        """`pool` runs the batches that would keep the event loop too long; `on_freed` runs in a thread after the last
        request of a version that was unloaded."""
        self.models, self.control = models, control
        self.leaving = False
        self._default, self._threads, self._providers = default, threads, providers
        self._max_batch, self._pool = max_batch, pool or ThreadPoolExecutor()
        self._metrics = metrics or Metrics("")
        self._on_freed = on_freed
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="graft-load")
        self._one_at_a_time = asyncio.Lock()
        self._loaded: dict[str, dict[int, Model]] = {}
        self._loading: Key | None = None
        self._freeing: list[Served] = []  # no longer asked, but at work for requests that came before
        self._lying: set[Key] = set()  # in the folder, when it was last looked at
        self._watch = Watch({})
        self._unseen: str | None = None  # why the last look found nothing
        self.refused: dict[str, str] = {}  # "name/version" → why

    def open(self) -> None:
        lying = found(self.models) if self.models.is_dir() else {}
        self._watch, self._lying = Watch(lying), set(lying)
        for name, version in sorted(lying):
            try:
                model = self._build(name, version)
            except BundleError as error:
                self._refuse(name, version, error)
            else:
                self._accept(model)
                self._loaded.setdefault(name, {})[version] = model
        self._tell()

    def leave(self) -> None:
        """Not ready any more: this process is about to end. Requests are answered as before."""
        self.leaving = True

    def close(self) -> None:
        self._loader.shutdown(wait=False, cancel_futures=True)

    # --- while requests are answered ---------------------------------------------------------------------------

    async def load(self, name: str, version: int | str | None = None) -> Model:
        """From here on this version answers for the name, and no other does; None is the highest in the folder.

        One that is loaded already is read anew. A BundleError says why it was refused; then nothing has changed.
        """
        self._require_explicit()
        async with self._one_at_a_time:
            lying = await self._in_thread(lambda: found(self.models))
            self._lying = set(lying)
            model = await self._try(name, self._meant(name, version))
            self._put(name, {model.bundle.version: model})
            return model

    async def unload(self, name: str) -> None:
        """Every version; returns when none answers any more, though requests may still run on them."""
        self._require_explicit()
        async with self._one_at_a_time:
            if name not in self._loaded:
                raise self._unknown(name)
            self._put(name, {})

    async def poll(self, seconds: float) -> None:
        """Until it is cancelled."""
        await again_and_again(seconds, self.look, "a look at the models folder failed; there will be another")

    async def look(self) -> None:
        """Loads what has come or changed and lies still, and unloads what has gone."""
        async with self._one_at_a_time:
            try:
                lying = await self._in_thread(lambda: found(self.models))
            except OSError as error:  # a volume that is away for a moment takes no model with it
                if self._unseen != str(error):
                    log.error("the models folder cannot be read, what is loaded stays: %s", error)
                self._unseen = str(error)
                return
            self._unseen, self._lying = None, set(lying)
            self.refused = {f"{n}/{v}": self.refused[f"{n}/{v}"] for n, v in lying if f"{n}/{v}" in self.refused}
            for name, version in self._watch.due(lying):
                with contextlib.suppress(BundleError):  # `_try` has told of it
                    model = await self._try(name, version)
                    self._put(name, {**self._loaded.get(name, {}), version: model})
            for name, loaded in list(self._loaded.items()):
                here = {version: model for version, model in loaded.items() if (name, version) in lying}
                if len(here) < len(loaded):
                    self._put(name, here)

    def index(self) -> list[Entry]:
        """By name, then version, rising."""
        states: dict[Key, State] = dict.fromkeys(self._lying, "UNAVAILABLE")
        states |= {(served.model, served.version): "UNLOADING" for served in self._freeing}
        states |= {self._loading: "LOADING"} if self._loading else {}
        states |= {(model.bundle.name, model.bundle.version): "READY" for model in self.all()}
        otherwise = {"UNAVAILABLE": "not loaded"}
        return [
            Entry(name, version, state, self.refused.get(f"{name}/{version}", otherwise.get(state, "")))
            for (name, version), state in sorted(states.items())
        ]

    # --- drift -------------------------------------------------------------------------------------------------

    async def drift(self, model: Model) -> Drift:
        """Judged in a thread, and told to the metrics."""
        if model.drift is None:
            raise OperationUnavailable(
                f"model {model.name} has no reference to tell drift by: export it again, or `graft-train calibrate` it"
            )
        found = await asyncio.to_thread(model.drift.judge)
        self._metrics.drifted(
            model.bundle.name,
            model.bundle.version,
            found.discrepancy,
            found.p_value,
            confidence=found.confidence,
            anomaly_score=found.anomaly_score,
        )
        return found

    async def watch_drift(self, seconds: float) -> None:
        """Until it is cancelled."""
        await again_and_again(seconds, self._judge_all, "drift could not be judged; it is tried again")

    async def _judge_all(self) -> None:
        for model in self.all():
            if model.drift is not None and model.drift.has_news:
                await self.drift(model)

    # --- what a request means ----------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here; those that come although they should not are answered too."""
        return not self.leaving and bool(self._loaded) and (self._default is None or self._default in self._loaded)

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
            raise self._unknown(name) if model else NotReady(f"the default model, {name}, is not loaded")
        if not at:
            return loaded[max(loaded)]
        named = next((loaded[number] for number in loaded if str(number) == version), None)
        if named is None:
            raise UnknownModel(f"model {name!r} has no version {version[:20]!r}; loaded: {self._listed()}")
        return named

    def _unknown(self, name: str) -> UnknownModel:
        return UnknownModel(f"there is no model {name[:100]!r}; loaded: {self._listed()}")

    def _listed(self) -> str:
        return ", ".join(model.name for model in self.all()) or "none"

    # --- loading and freeing -----------------------------------------------------------------------------------

    def _require_explicit(self) -> None:
        if self.control != "explicit":
            raise LoadingNotAllowed(
                f"models are not loaded and unloaded by calls here: {PREFIX}MODEL_CONTROL is {self.control}"
            )

    def _meant(self, name: str, version: int | str | None) -> int:
        there = sorted(number for each, number in self._lying if each == name)
        if not there:
            raise UnknownModel(f"the models folder has no model {name[:100]!r}")
        if version is None:
            return there[-1]
        if str(version) not in map(str, there):
            told = ", ".join(map(str, there))
            raise UnknownModel(f"the models folder has no version {str(version)[:20]!r} of {name}; it has {told}")
        return int(version)

    async def _try(self, name: str, version: int) -> Model:
        self._loading = name, version
        try:
            model = await self._in_thread(lambda: self._build(name, version))
        except BundleError as error:
            self._refuse(name, version, error)
            raise
        finally:
            self._loading = None
        self._accept(model)
        return model

    async def _in_thread(self, work: Callable[[], Found]) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._loader, work)

    def _build(self, name: str, version: int) -> Model:
        """Verified, golden pairs and all, and warm; a BundleError says why not."""
        try:
            bundle = load(self.models / name / str(version), self._threads, self._providers)
            return Model(bundle, self._max_batch, self._pool, self._metrics.ran)
        except BundleError:
            raise
        except Exception as error:
            log.exception("unexpected, while %s/%d was loaded", name, version)
            raise BundleError(f"{name}/{version}: {type(error).__name__}; the log has it") from None

    def _refuse(self, name: str, version: int, error: BundleError) -> None:
        self._metrics.tried(name, "refused")
        if self.refused.get(f"{name}/{version}") != str(error):
            log.error("refused %s", error)
        self.refused[f"{name}/{version}"] = str(error)

    def _accept(self, model: Model) -> None:
        bundle, milliseconds = model.bundle, 1000 * model.seconds
        self._metrics.tried(bundle.name, "loaded")
        self.refused.pop(f"{bundle.name}/{bundle.version}", None)
        told = "loaded %s %s on %s, %.2f ms an image"
        log.info(told, model.name, bundle.digest[:12], bundle.encoder.provider, milliseconds)

    def _put(self, name: str, versions: dict[int, Model]) -> None:
        """From here on these answer for the name, and no others do."""
        before = self._loaded.get(name, {})
        loaded = {**self._loaded, name: versions}
        self._loaded = {each: models for each, models in loaded.items() if models}
        loop = asyncio.get_running_loop()
        for version, model in before.items():
            if versions.get(version) is not model:
                served = _served(model)
                self._freeing.append(served)
                weakref.finalize(model.bundle, _call, loop, partial(self._freed, served)).atexit = False
        self._tell()

    def _freed(self, served: Served) -> None:
        """The last request that ran on it has been answered."""
        self._freeing.remove(served)
        self._tell()
        with contextlib.suppress(RuntimeError):  # that the process is about to end
            self._loader.submit(self._on_freed)
        log.info("unloaded %s@%d %s", served.model, served.version, served.digest[:12])

    def _tell(self) -> None:
        self._metrics.serve([*map(_served, self.all()), *self._freeing])


async def again_and_again(seconds: float, do: Callable[[], Awaitable[None]], failed: str) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await do()
        except Exception:
            log.exception(failed)


def _served(model: Model) -> Served:
    bundle = model.bundle
    return Served(bundle.name, bundle.version, bundle.digest, bundle.encoder.provider)


def _call(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """On the loop, from whichever thread, unless it has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(what)
