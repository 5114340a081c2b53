import numpy as np

from training.data.imageset import ImageSet


def numbered(labels: list[int]) -> ImageSet:
    images = np.arange(len(labels), dtype=np.uint16).view(np.uint8).reshape(-1, 1, 2, 1)
    return ImageSet(images, np.array(labels, np.int64), tuple("abc"))


def test_the_fingerprint_is_of_images_and_labels() -> None:
    one, two = numbered([0, 1]), numbered([1, 0])
    assert one.fingerprint() == numbered([0, 1]).fingerprint() != two.fingerprint()
