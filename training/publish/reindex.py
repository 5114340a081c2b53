"""A bundle with an index of images of your own, published as the next version. No torch."""

from pathlib import Path

from app.bundle import Bundle
from app.bundle.bundle import CARD_FILE
from app.bundle.index import FILE, MOST_EXAMPLES
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.publish.card import card_of_reindexed
from training.publish.revise import revised
from training.score import examples


def reindex(folder: Path, bundle: Bundle, images: ImageSet, name: str, thumbnails: bool) -> Path:
    """A new version of the bundle in `folder`, which answers similar images from these; all else stays as it is."""
    if len(images) > MOST_EXAMPLES:
        raise TrainingError(
            f"{name}: {len(images):,} images; an index holds at most {MOST_EXAMPLES:,}: index some of them, or put "
            "the embeddings into a vector database"
        )
    before = bundle.manifest
    data = {**before.provenance.data, "index/images": images.fingerprint()}
    provenance = before.provenance.model_copy(update={"data": data})
    after = before.model_copy(update={"index": FILE, "provenance": provenance})
    files = examples.index(bundle, images, thumbnails)
    old = (folder / CARD_FILE).read_text() if CARD_FILE in before.files else f"# {before.title}\n"
    card = card_of_reindexed(old, version=bundle.version, images=len(images), name=name, thumbnails=thumbnails)
    return revised(folder, before, after, {**files, CARD_FILE: card.encode()})
