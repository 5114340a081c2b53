"""Recipes raced on the same folds under a time budget, by successive halving; Optuna keeps the score in a file.

A contender that is behind after some folds is left behind; one whose folds would not end in time does not begin.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from app.bundle.scoring import probabilities, sigmoid
from training.errors import TrainingError
from training.progress import OutOfTime, say, until
from training.score import temperature
from training.search.crossing import Crossing

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler

FILE = "study.db"  # in the folder of the search: Optuna's storage, SQLite
_STUDY = "folds"
_WORST = 1e-12  # of a probability in a logarithm


@dataclass
class Budget:
    """Seconds for everything, of which some are kept for what comes after the race."""

    seconds: float
    kept: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """For the race."""
        return self.seconds - self.kept - self.spent

    @property
    def end(self) -> float:
        """Of the race, by time.monotonic."""
        return self.began + self.seconds - self.kept

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began


@dataclass(frozen=True)
class Contender:
    name: str
    what: str  # it is, for people
    open: Callable[[], Crossing]  # its images are read when it begins
    guess: float = 0.0  # seconds for a fold, before one was measured
    after: float = 1.0  # folds' time that the network that is published takes


@dataclass(frozen=True)
class Finished:
    """A contender on all folds."""

    contender: Contender
    crossing: Crossing
    losses: np.ndarray  # (N,) of each image, at the contender's own temperature
    seconds: float  # of one fold

    @property
    def loss(self) -> float:
        return float(self.losses.mean())


def race(contenders: Sequence[Contender], folder: Path, budget: Budget) -> list[Finished]:
    """Those that were crossed on all folds, in the order in which they were given; the first is never left behind.

    What is finished in `folder` is not repeated. Ctrl-C ends the race where a contender has finished.
    """
    import optuna

    study = open_study(folder, optuna.samplers.RandomSampler(seed=0))  # every contender is named
    choices = optuna.distributions.CategoricalDistribution([each.name for each in contenders])
    finished: list[Finished] = []
    for contender in contenders:
        study.enqueue_trial({"contender": contender.name})
        trial = study.ask({"contender": choices})
        try:
            found = cross(contender, budget, study, trial, needed=not finished)
        except KeyboardInterrupt:
            if not finished:
                raise
            say(f"stopped at {contender.name}: going on with the best so far; Ctrl-C again to leave without a bundle")
            break
        if found is not None:
            finished.append(found)
    return finished


def cross(contender: Contender, budget: Budget, study: "Study", trial: "Trial", needed: bool) -> Finished | None:
    """A trial of a study, told how it ended. None if it is left behind, or would not end in time. `needed`: it runs
    whatever it takes."""
    from optuna.trial import TrialState

    try:
        found = _cross(contender, budget, trial, needed)
    except OutOfTime:
        say(f"{contender.name}: stopped: the time that is left is needed to publish")
        found = None
    except BaseException:
        study.tell(trial, state=TrialState.FAIL)
        raise
    if found is None:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, found.loss)
    return found


def open_study(folder: Path, sampler: "BaseSampler") -> "Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.create_study(
            study_name=_STUDY,
            storage=f"sqlite:///{folder / FILE}",
            direction="minimize",
            sampler=sampler,
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
            load_if_exists=True,
        )
    except Exception as error:  # SQLAlchemy's errors share no base with others
        raise TrainingError(f"{folder / FILE}: cannot be used as the record of a search: {error}") from None


def _cross(contender: Contender, budget: Budget, trial: "Trial", needed: bool) -> Finished | None:
    if not needed and contender.guess * (1 + contender.after) > budget.left:
        say(f"{contender.name}: left out: a first fold and the network would take {_minutes(contender.guess * 2)}")
        return None
    with until(None if needed else time.monotonic() + budget.left):
        crossing = contender.open()
        if crossing.encodes_once:
            crossing.points()  # or the first fold would seem to take as long as all
        began = time.monotonic()
        for number in range(len(crossing)):
            crossing.logits(number)
            done = number + 1
            seconds = (time.monotonic() - began) / done
            if done == len(crossing):
                break
            losses = losses_of(crossing, range(done))
            trial.report(float(losses[~np.isnan(losses)].mean()), step=done)
            behind = trial.should_prune()  # asked of the first, too: Optuna notes its place then
            if needed:
                continue
            if behind:
                say(f"{contender.name}: behind after {done} of {len(crossing)} folds")
                return None
            ahead = seconds * (len(crossing) - done + contender.after)
            if ahead > budget.left:
                say(
                    f"{contender.name}: left out after {done} of {len(crossing)} folds: it would take {_minutes(ahead)}"
                )
                return None
    losses = losses_of(crossing, range(len(crossing)))
    return Finished(contender, crossing, losses, (time.monotonic() - began) / len(crossing))


def losses_of(crossing: Crossing, numbers: Sequence[int] | range) -> np.ndarray:
    """(N,) the mean over deals of -ln p of an image's label, at the temperature that fits these folds best; NaN of
    images that none of them holds. Where an image may have several labels, the mean over them of -ln p of what is so.
    """
    truth = crossing.material.target.truth
    rows = np.concatenate([np.flatnonzero(crossing.held(number)) for number in numbers])
    logits = np.concatenate([crossing.logits(number) for number in numbers])
    totals, counts = np.zeros(len(truth)), np.zeros(len(truth))
    np.add.at(totals, rows, _losses(logits, truth[rows]))
    np.add.at(counts, rows, 1)
    return np.asarray(np.divide(totals, counts, out=np.full(len(truth), np.nan), where=counts > 0))


def _losses(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    fitted = temperature.fit(logits, truth)
    if truth.ndim == 2:
        chances = sigmoid(np.where(truth, logits, -logits), fitted)
    else:
        chances = probabilities(logits, fitted)[np.arange(len(truth)), truth][:, None]
    return np.asarray(-np.log(np.maximum(chances, _WORST)).mean(axis=1))


def best(finished: Sequence[Finished]) -> Finished:
    """The first whose loss is within a standard error of the lowest: a later one costs more, and has to be better by
    more than chance."""
    lowest = min(finished, key=lambda each: each.loss)
    for each in finished:
        apart = each.losses - lowest.losses
        if apart.mean() <= apart.std(ddof=1) / np.sqrt(len(apart)):
            return each
    return lowest


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
