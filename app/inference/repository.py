"""The loaded bundles, and the lookup of the one that a request names. Bundles load and unload under traffic.

A version is read, verified and warmed up in a thread, then swapped in by one assignment on the event loop. The version
that it replaces lives until the last request on it is answered, and is freed then.
"""

import asyncio
import contextlib
import threading
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
from app.inference.folder import Key, Watch, scan
from app.inference.model import Model
from app.inference.tuning import Stopped, tune
from app.settings import PREFIX, ModelControl
from app.telemetry.logs import log
from app.telemetry.metrics import ALARM, Metrics, Served

MAX_BATCH = 32  # most images in one run of a graph
_AT_ONCE = 4  # bundles that are read side by side at start: each waits for its disk, and takes memory for its files
ModelState = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A version that is loaded or lies in the folder; `reason`: why it is not loaded, or was last refused."""

    name: str
    version: int
    state: ModelState
    reason: str


class Repository:
    """`open` loads every version in the folder; a refused bundle is logged and listed in `refused`, and not served.

    Later changes depend on `control`: "none" allows none, "poll" follows the folder, "explicit" allows `load` and
    `unload`. A Repository belongs to one event loop.
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
        workers: int = 1,
        tuned_threads: Sequence[int] = (),
    ) -> None:
        """`pool` runs the batches that would block the event loop for too long. `on_freed` is called in a thread when
        an unloaded version has been freed. `workers`: processes that serve the same models. `tuned_threads`: the
        numbers of threads that `tune` may try."""
        self.models, self.control = models, control
        self.leaving = False
        self._default, self._threads, self._providers = default, threads, providers
        self._max_batch, self._pool = max_batch, pool or ThreadPoolExecutor()
        self._metrics = metrics or Metrics("")
        self._on_freed, self._workers, self._tuned_threads = on_freed, workers, tuned_threads
        self._closing = threading.Event()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="graft-load")
        self._one_at_a_time = asyncio.Lock()
        self._loaded: dict[str, dict[int, Model]] = {}
        self._loading: Key | None = None
        self._freeing: list[Served] = []  # replaced, but still answering earlier requests
        self._on_disk: set[Key] = set()  # at the last look at the folder
        self._watch = Watch({})
        self._read_error: str | None = None  # of the last look at the folder
        self.refused: dict[str, str] = {}  # "name/version" → why

    def open(self) -> None:
        on_disk = scan(self.models) if self.models.is_dir() else {}
        self._watch, self._on_disk = Watch(on_disk), set(on_disk)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="graft-open") as side_by_side:
            building = [(key, side_by_side.submit(self._build, *key)) for key in sorted(on_disk)]
            for (name, version), built in building:
                try:
                    model = built.result()
                except BundleError as error:
                    self._refuse(name, version, error)
                else:
                    self._accept(model)
                    self._loaded.setdefault(name, {})[version] = model
        self._publish_served()

    def leave(self) -> None:
        """Reports not ready, because this process is about to end. Requests are still answered."""
        self.leaving = True

    def close(self) -> None:
        self._closing.set()
        self._loader.shutdown(wait=False, cancel_futures=True)

    # --- changes under traffic ---------------------------------------------------------------------------------

    async def load(self, name: str, version: int | str | None = None) -> Model:
        """Makes this version the only one of its name; None means the highest in the folder.

        A version that is loaded already is read again. Raises BundleError if it is refused; then nothing changes.
        """
        self._require_explicit()
        async with self._one_at_a_time:
            on_disk = await self._in_thread(lambda: scan(self.models))
            self._on_disk = set(on_disk)
            model = await self._try(name, self._version_on_disk(name, version))
            self._put(name, {model.bundle.version: model})
            return model

    async def unload(self, name: str) -> None:
        """Unloads every version of the name: new requests do not reach them, running ones end normally."""
        self._require_explicit()
        async with self._one_at_a_time:
            if name not in self._loaded:
                raise self._unknown(name)
            self._put(name, {})

    async def poll(self, seconds: float) -> None:
        """Calls `look` every `seconds`, until it is cancelled."""
        await repeat(seconds, self.look, "the models folder could not be checked; will try again")

    async def look(self) -> None:
        """Loads versions that are new or changed and completely copied, and unloads those that were removed."""
        async with self._one_at_a_time:
            try:
                on_disk = await self._in_thread(lambda: scan(self.models))
            except OSError as error:  # a volume that is briefly unavailable must not unload any model
                if self._read_error != str(error):
                    log.error("the models folder cannot be read, loaded models stay: %s", error)
                self._read_error = str(error)
                return
            self._read_error, self._on_disk = None, set(on_disk)
            self.refused = {f"{n}/{v}": self.refused[f"{n}/{v}"] for n, v in on_disk if f"{n}/{v}" in self.refused}
            for name, version in self._watch.due(on_disk):
                with contextlib.suppress(BundleError):  # `_try` has logged it
                    model = await self._try(name, version)
                    self._put(name, {**self._loaded.get(name, {}), version: model})
            for name, loaded in list(self._loaded.items()):
                remaining = {version: model for version, model in loaded.items() if (name, version) in on_disk}
                if len(remaining) < len(loaded):
                    self._put(name, remaining)

    def index(self) -> list[IndexEntry]:
        """Sorted by name, then version."""
        states: dict[Key, ModelState] = dict.fromkeys(self._on_disk, "UNAVAILABLE")
        states |= {(served.model, served.version): "UNLOADING" for served in self._freeing}
        states |= {self._loading: "LOADING"} if self._loading else {}
        states |= {(model.bundle.name, model.bundle.version): "READY" for model in self.all()}
        reasons = {"UNAVAILABLE": "not loaded"}
        return [
            IndexEntry(name, version, state, self.refused.get(f"{name}/{version}", reasons.get(state, "")))
            for (name, version), state in sorted(states.items())
        ]

    # --- tuning ------------------------------------------------------------------------------------------------

    async def tune(self, seconds: float) -> None:
        """Every `seconds` tunes models that have not been, one after another, until it is cancelled."""
        await repeat(seconds, self._tune_all, "models could not be tuned; will try again")

    async def _tune_all(self) -> None:
        for model in self.all():
            if model.tuning.state == "waiting":
                await asyncio.to_thread(self._tune, model)

    def _tune(self, model: Model) -> None:
        bundle, tuning = model.bundle, model.tuning
        tuning.state = "measuring"

        def pause(seconds: float) -> None:
            if self._closing.wait(seconds) or model not in self.all():
                raise Stopped

        try:
            for trials in tune(bundle, self._folder(bundle.name, bundle.version), self._tuned_threads, pause):
                tuning.trials += trials
        except Stopped:
            return
        except Exception as error:  # it is served as it was
            tuning.state, tuning.problem = "failed", str(error) or type(error).__name__
            log.warning("%s could not be tuned: %s", model.name, tuning.problem)
            return
        model.measure()
        self._on_freed()  # of the ways that were not taken
        tuning.state = "done"
        encoder = next((trial for trial in tuning.trials if trial.chosen), None)
        if encoder is not None:
            log.info(
                "tuned %s: its encoder runs on %s, %.2f ms per image",
                model.name,
                encoder.execution,
                1000 * model.seconds,
            )

    # --- drift -------------------------------------------------------------------------------------------------

    async def drift(self, model: Model) -> Drift:
        """Computes the model's drift in a thread, and sets the metrics to it."""
        if model.drift is None:
            raise OperationUnavailable(
                f"model {model.name} has no reference for drift: export it again, or run `graft-train calibrate` on it"
            )
        drift = await asyncio.to_thread(model.drift.compute)
        self._metrics.drifted(
            model.bundle.name,
            model.bundle.version,
            drift.discrepancy,
            drift.p_value,
            confidence=drift.confidence,
            anomaly_score=drift.anomaly_score,
        )
        if drift.watched is not None:
            capital, alarm = drift.watched.martingale, drift.watched.alarm_at is not None
            accuracy = None if drift.accuracy is None else drift.accuracy[0]
            self._metrics.watched(model.bundle.name, model.bundle.version, capital, alarm, accuracy=accuracy)
        return drift

    async def alarmed(self, model: Model) -> bool:
        """Whether the model's stream has raised the alarm, in this worker or another."""
        samples = await asyncio.to_thread(self._metrics.of, model.bundle.name, model.bundle.version)
        return any(sample.name == ALARM and sample.value for sample in samples)

    async def watch_drift(self, seconds: float) -> None:
        """Updates the drift of models that had requests every `seconds`, until it is cancelled."""
        await repeat(seconds, self._drift_of_all, "drift could not be computed; will try again")

    async def _drift_of_all(self) -> None:
        for model in self.all():
            if model.drift is not None and model.drift.has_new_requests:
                await self.drift(model)

    # --- lookup ------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here. If not, those that come are answered all the same where possible."""
        return not self.leaving and bool(self._loaded) and (self._default is None or self._default in self._loaded)

    @property
    def default(self) -> str | None:
        return self._default or min(self._loaded, default=None)

    def all(self) -> list[Model]:
        """Sorted by name, then version."""
        return [versions[number] for _, versions in sorted(self._loaded.items()) for number in sorted(versions)]

    def get(self, model: str | None) -> Model:
        """`model` is name, name@version, or None for the default. Without a version, the highest is used."""
        wanted = model or self.default
        if wanted is None:
            raise NotReady("no model is loaded; put a bundle into the models folder")
        name, at, version = wanted.partition("@")
        loaded = self._loaded.get(name)
        if loaded is None:
            raise self._unknown(name) if model else NotReady(f"the default model, {name}, is not loaded")
        if not at:
            return loaded[max(loaded)]
        match = next((loaded[number] for number in loaded if str(number) == version), None)
        if match is None:
            raise UnknownModel(f"model {name!r} has no version {version[:20]!r}; loaded: {self._loaded_names()}")
        return match

    def _unknown(self, name: str) -> UnknownModel:
        return UnknownModel(f"there is no model {name[:100]!r}; loaded: {self._loaded_names()}")

    def _loaded_names(self) -> str:
        return ", ".join(model.name for model in self.all()) or "none"

    # --- loading and freeing -----------------------------------------------------------------------------------

    def _require_explicit(self) -> None:
        if self.control != "explicit":
            raise LoadingNotAllowed(
                f"requests cannot load or unload models here: {PREFIX}MODEL_CONTROL is {self.control}, not explicit"
            )

    def _version_on_disk(self, name: str, version: int | str | None) -> int:
        numbers = sorted(number for other, number in self._on_disk if other == name)
        if not numbers:
            raise UnknownModel(f"the models folder has no model {name[:100]!r}")
        if version is None:
            return numbers[-1]
        if str(version) not in map(str, numbers):
            present = ", ".join(map(str, numbers))
            raise UnknownModel(f"the models folder has no version {str(version)[:20]!r} of {name}; it has {present}")
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

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._loader, function)

    def _build(self, name: str, version: int) -> Model:
        """A verified and warmed-up model. Raises nothing but BundleError."""
        try:
            bundle = load(self._folder(name, version), self._threads, self._providers)
            return Model(
                bundle,
                self._max_batch,
                self._pool,
                self._metrics.observe_batch,
                workers=self._workers,
                tuning="waiting" if self._tuned_threads else "off",
            )
        except BundleError:
            raise
        except Exception as error:
            log.exception("unexpected %s while loading %s/%d", type(error).__name__, name, version)
            raise BundleError(f"{name}/{version}: unexpected {type(error).__name__}; see the log") from None

    def _folder(self, name: str, version: int) -> Path:
        return self.models / name / str(version)

    def _refuse(self, name: str, version: int, error: BundleError) -> None:
        self._metrics.count_load(name, "refused")
        if self.refused.get(f"{name}/{version}") != str(error):
            log.error("refused %s", error)
        self.refused[f"{name}/{version}"] = str(error)

    def _accept(self, model: Model) -> None:
        bundle, milliseconds = model.bundle, 1000 * model.seconds
        self._metrics.count_load(bundle.name, "loaded")
        self.refused.pop(f"{bundle.name}/{bundle.version}", None)
        provider = bundle.encoder.provider
        log.info("loaded %s %s on %s, %.2f ms per image", model.name, bundle.digest[:12], provider, milliseconds)

    def _put(self, name: str, versions: dict[int, Model]) -> None:
        """Replaces the served versions of the name."""
        before = self._loaded.get(name, {})
        loaded = {**self._loaded, name: versions}
        self._loaded = {name: models for name, models in loaded.items() if models}
        loop = asyncio.get_running_loop()
        for version, model in before.items():
            if versions.get(version) is not model:
                served = _served(model)
                self._freeing.append(served)
                weakref.finalize(model.bundle, _call, loop, partial(self._freed, served)).atexit = False
        self._publish_served()

    def _freed(self, served: Served) -> None:
        """Called when the last request on this version has been answered."""
        self._freeing.remove(served)
        self._publish_served()
        with contextlib.suppress(RuntimeError):  # the loader has shut down, as the process is about to end
            self._loader.submit(self._on_freed)
        log.info("unloaded %s@%d %s", served.model, served.version, served.digest[:12])

    def _publish_served(self) -> None:
        self._metrics.serve([*map(_served, self.all()), *self._freeing])


async def repeat(seconds: float, do: Callable[[], Awaitable[None]], failed: str) -> None:
    """Awaits `do()` every `seconds`, until it is cancelled; an exception is logged with the message `failed`."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await do()
        except Exception:
            log.exception(failed)


def _served(model: Model) -> Served:
    bundle = model.bundle
    return Served(bundle.name, bundle.version, bundle.digest, bundle.encoder.provider)


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Calls it on the loop, from any thread, unless the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)
