"""A bundle with an index of images of your own, published as the next version. No torch."""

from pathlib import Path

from app.bundle import Bundle, Manifest
from app.bundle.bundle import CARD_FILE
from app.bundle.index import FILE, MOST_EXAMPLES
from training.data.imageset import ImageSet
from training.data.splits import train_and_held_out
from training.errors import TrainingError
from training.publish.card import card_of_reindexed
from training.publish.revise import revised
from training.recipe import Recipe
from training.score import codes, examples


def reindex(
    folder: Path, bundle: Bundle, images: ImageSet, name: str, thumbnails: bool, most: int | None = None
) -> Path:
    """A new version of the bundle in `folder`, which answers similar images from these; all else stays as it is.

    If these are the images that the bundle has learnt from, those that it held out are left out of the index, and the
    version gets the codes that `graft-train learn` needs, if it has none.
    """
    if (most or len(images)) > MOST_EXAMPLES:
        raise TrainingError(
            f"{name}: {most or len(images):,} images; an index holds at most {MOST_EXAMPLES:,}: index some of them "
            "(--most), or put the embeddings into a vector database"
        )
    before = bundle.manifest
    data = {**before.provenance.data, "index/images": images.fingerprint()}
    files: dict[str, bytes] = {}
    own = _own_parts(before, images)
    if own is not None:
        images, held_out, recipe = own
        if before.codes is None:
            files = codes.codes(bundle, images, held_out, recipe.export.codes)
    files |= examples.index(bundle, images, thumbnails, most=most or MOST_EXAMPLES)
    after = before.model_copy(
        update={
            "index": FILE,
            "codes": codes.FILE if codes.FILE in files else before.codes,
            "provenance": before.provenance.model_copy(update={"data": data}),
        }
    )
    old = (folder / CARD_FILE).read_text() if CARD_FILE in before.files else f"# {before.title}\n"
    kept = min(most or len(images), len(images))
    known = {"labels": images.labelled, "file names": bool(images.names), "thumbnails": thumbnails}
    holds = [what for what, there in known.items() if there]
    card = card_of_reindexed(old, version=bundle.version, images=kept, name=name, holds=holds)
    return revised(folder, before, after, {**files, CARD_FILE: card.encode()})


def _own_parts(manifest: Manifest, images: ImageSet) -> tuple[ImageSet, ImageSet, Recipe] | None:
    """(those learnt from, those held out to choose by, the recipe), if these are the images of the bundle's recipe."""
    try:
        recipe = Recipe.stored(manifest.provenance.recipe)
    except ValueError:  # of another kind
        return None
    if recipe.split.folds or images.fingerprint() != manifest.provenance.data.get("target/train"):
        return None
    train, validation, _ = train_and_held_out(images, recipe.split, recipe.seed)
    return train, validation, recipe
