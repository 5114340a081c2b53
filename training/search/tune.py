"""Settings of a recipe searched on folds of its training images, the test part unseen."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from training import recipe as recipes
from training.data import inspection
from training.data.material import Material, gather
from training.data.resolution import settled
from training.errors import TrainingError
from training.progress import say
from training.recipe import Recipe
from training.search import space as spaces
from training.search.crossing import Crossing
from training.search.race import Budget, Contender, cross, open_study

BEST_FILE = "best.toml"
_FOLDS = 5
_FAILED = 3  # trials that may fail at the beginning


def tune(recipe: str, settings: Sequence[str], space: Path, folder: Path, *, minutes: float, trials: int) -> Path:
    """The recipe with the lowest loss, as a file in `folder`, where the search is kept and goes on from."""
    import optuna

    asked = spaces.read(space)
    base = recipes.load(recipe, list(settings))
    if not base.transfer.labels or base.transfer.adapts:
        raise TrainingError(f"transfer.mode={base.transfer.mode} learns no labels of the target to be judged by")
    fixed = [*settings, *([] if base.split.folds else [f"split.folds={_FOLDS}"])]
    study = open_study(folder, optuna.samplers.TPESampler(seed=base.seed % 2**32))
    materials: dict[str, Material] = {}
    budget, tried = Budget(60 * minutes), 0
    finished = any(each.state == optuna.trial.TrialState.COMPLETE for each in study.trials)
    while tried < trials and budget.left > 0:
        trial = study.ask(asked)
        tried += 1
        changes = spaces.changes(trial.params)
        name = f"{trial.number}: {', '.join(changes)}"
        try:
            own = recipes.load(recipe, [*fixed, *changes])
            opened = partial(_opened, own, folder / "trials" / str(trial.number), materials)
            contender = Contender(name, "", opened)
            found = cross(contender, budget, study, trial, needed=not finished)
        except TrainingError as error:
            say(f"{name}: {error}")
            if not finished and tried >= _FAILED:
                raise TrainingError(f"--space {space}: the first {tried} trials failed; the last: {error}") from None
            continue
        except KeyboardInterrupt:
            say(f"stopped; the same command with --run {folder} goes on")
            break
        if found is None:
            continue
        finished = True
        say(f"{name}: loss {found.loss:.4f}, {found.crossing.everything().right.mean():.2%} right")
    done = [each for each in study.trials if each.state == optuna.trial.TrialState.COMPLETE]
    if not done:
        raise TrainingError(f"{folder}: no trial has ended: give more --minutes, or fewer folds by --set split.folds=3")
    best = study.best_trial
    chosen = recipes.load(recipe, [*fixed, *spaces.changes(best.params)])
    path = folder / BEST_FILE
    path.write_text(recipes.to_toml(chosen))
    say(f"best of {len(done)} finished trials: loss {best.value:.4f} with {', '.join(spaces.changes(best.params))}")
    say(f"note: the lowest of many is partly luck: graft-train run {path} measures it, on a test part if there is one")
    return path


def _opened(recipe: Recipe, folder: Path, materials: dict[str, Material]) -> Crossing:
    recipe = settled(inspection.settled(recipe))
    key = f"{recipe.input.model_dump_json()} {recipe.split.model_dump_json()} {recipe.seed}"
    if key not in materials:
        materials[key] = gather(recipe, **({"report": lambda _: None} if materials else {}))
    folder.mkdir(parents=True, exist_ok=True)
    recipes.write(recipe, folder)
    return Crossing(recipe, materials[key], folder)
