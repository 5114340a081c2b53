import numpy as np

from benchmarks.methods.left_out import evaluate_task

RNG = np.random.default_rng(0)


def test_what_is_stated_is_held_against_images_that_were_not_shown() -> None:
    labels = np.repeat(np.arange(4), 90)
    apart = 20 * np.eye(4, 6)[labels] + RNG.normal(size=(360, 6))
    stated, true, confidence, holds = evaluate_task(apart.astype(np.float32), labels, [], 3, 5).mean(axis=0)
    assert (stated, true, holds) == (1, 1, 1)
    assert 0.9 < confidence < 1
    noise = RNG.normal(size=(360, 6)).astype(np.float32)
    _, guessed, _, _ = evaluate_task(noise, labels, [], 3, 5).mean(axis=0)
    assert abs(guessed - 1 / 3) < 0.05
