"""A betting martingale: one number that says whether a stream of images has left its calibration images. Pure numpy.

Each image's scores get online conformal p-values: their ranks among those of the calibration images and of all images
before it, ties drawn at random. Whatever the scores are, the p-values of one image are independent of those of the
others, and uniform, as long as images are exchangeable with each other and with the calibration images (Vovk,
Gammerman and Shafer 2005). A gambler who begins with 1 bets against that; the capital is a martingale, so it ever
reaches 1 / rate with a probability of `rate` at most, however long the stream and however often one looks (Ville's
inequality).

    calibration   grows with the stream: with a fixed one, its own luck would be bet against for ever
    scores        are counted by level, 1/32 of an octave: memory does not grow, and p-values stay exact
    bets          (1 - a) + a · ε · q^(ε - 1), on q = p and q = 1 - p: scores that are too high, and too low
    starts        the capital is spread over all moments at which a change may begin, so that a long quiet stream has
                  not lost what a later change is noticed by: 1 / (1 + ln(1 + t / 100)) is not yet bet after t images
"""

import math
from typing import NamedTuple

import numpy as np

FALSE_ALARM = 0.01  # the chance that a stream without a change ever raises the alarm
_BETS = np.array([[0.25, 0.5], [0.6, 1.0]])  # ε, a
_STARTS = 100  # images in which the first half of the starts lies, roughly
_TOGETHER = 64  # images whose p-values are computed at a time: the cost of each grows with it, that of all shrinks
_BITS = 5  # of a half-precision number that are dropped: five of ten behind the point are left
_LEVELS = (0x7C00 >> _BITS) + 1  # from zero to infinity
_POINTS = 256  # most points of the history


class Point(NamedTuple):
    images: int
    log_capital: float


class Martingale:
    def __init__(self, calibration: np.ndarray, rng: np.random.Generator) -> None:
        """`calibration`: (n, S) scores, as those of `add`: at least zero, and about 1 in the middle."""
        levels = _levels(calibration)
        self._counts = np.stack([np.bincount(each, minlength=_LEVELS) for each in levels])  # (S, levels)
        self._calibrated_on, self._rng = len(calibration), rng
        self._log_bets = np.full((2 * len(_BETS) * len(levels), 1), -np.inf)  # the capital of each way to bet
        self.images = 0
        self.log_capital = self.highest = 0.0
        self.alarm_at: int | None = None  # images after which the alarm was raised
        self.history = [Point(0, 0.0)]
        self._step = 1  # images between two points

    def add(self, scores: np.ndarray, threshold: float) -> None:
        """(N, S) scores of the next images. The alarm is raised where the capital reaches `threshold`."""
        levels, log_threshold = _levels(scores), math.log(threshold)
        for start in range(0, len(scores), _TOGETHER):
            self._add(levels[:, start : start + _TOGETHER], log_threshold)

    def _add(self, levels: np.ndarray, log_threshold: float) -> None:
        capital = self._bet(self._p_values(levels))
        before, self.images = self.images, self.images + len(capital)
        self.log_capital = float(capital[-1])
        self.highest = max(self.highest, float(capital.max()))
        if self.alarm_at is None and self.highest >= log_threshold:
            self.alarm_at = before + 1 + int((capital >= log_threshold).argmax())
        for image in range(before + self._step - before % self._step, self.images + 1, self._step):
            self.history.append(Point(image, float(capital[image - before - 1])))
        while len(self.history) > _POINTS:
            self.history, self._step = self.history[::2], 2 * self._step

    def _p_values(self, levels: np.ndarray) -> np.ndarray:
        """(S, B), each among the calibration images and all images before it, which these then join."""
        count = levels.shape[1]
        total, up_to = self._calibrated_on + self.images, np.cumsum(self._counts, axis=1)
        each, other, earlier = levels[:, :, None], levels[:, None, :], np.tri(count, k=-1, dtype=bool)
        higher = total - np.take_along_axis(up_to, levels, axis=1) + ((other > each) & earlier).sum(axis=2)
        equal = np.take_along_axis(self._counts, levels, axis=1) + ((other == each) & earlier).sum(axis=2)
        np.add.at(self._counts, (np.arange(len(levels))[:, None], levels), 1)
        drawn = 1 - self._rng.random(levels.shape)  # above zero, or a bet on q = 0 would be infinite
        return np.asarray((higher + drawn * (equal + 1)) / (total + np.arange(count) + 1))

    def _bet(self, p: np.ndarray) -> np.ndarray:
        """(S, B) p-values → (B,) logarithm of the capital after each image."""
        sides = np.log(np.concatenate([p, np.maximum(1 - p, 1e-12)]))  # (2 S, B)
        gains = np.concatenate([np.log((1 - a) + a * e * np.exp((e - 1) * sides)) for e, a in _BETS]).cumsum(axis=1)
        idle = 1 / (1 + np.log1p(np.arange(self.images, self.images + p.shape[1] + 1) / _STARTS))
        begun = np.log((idle[:-1] - idle[1:]) / len(gains))
        # S(t) = (S(t - 1) + begun(t)) · gain(t), for all t at once
        shifted = begun - gains
        shifted[:, 0], shifted[:, 1:] = begun[0], begun[1:] - gains[:, :-1]
        bets = gains + np.logaddexp(self._log_bets, np.logaddexp.accumulate(shifted, axis=1))
        self._log_bets = bets[:, -1:]
        return np.asarray(np.logaddexp(np.log(idle[1:]), np.logaddexp.reduce(bets, axis=0)))


def _levels(scores: np.ndarray) -> np.ndarray:
    """(N, S) → (S, N)"""
    with np.errstate(over="ignore"):  # infinite in half precision: the highest level
        return np.asarray(np.ascontiguousarray(scores.T, np.float16).view(np.uint16) >> _BITS).astype(np.intp)
