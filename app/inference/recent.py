"""The images of the latest requests by their ids, so that feedback need not send an image again. In memory alone."""

from collections import OrderedDict
from collections.abc import Sequence

from app.inference.predictor import Prediction

_OVERHEAD = 500  # bytes that an entry takes beside its files, about


class Recent:
    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._entries: OrderedDict[str, tuple[str, Sequence[bytes]]] = OrderedDict()

    def add(self, request_id: str, result: Prediction) -> None:
        """The oldest make room. Pixels that were sent as a tensor are no files, and are not kept. Nor are requests of
        which some images are bad: an index would mean another image."""
        size = _size(result.files)
        if not result.files or result.faults or size > self._most:
            return
        self._remove(request_id)
        self._entries[request_id] = result.bundle.name, result.files
        self._held += size
        while self._held > self._most:
            self._remove(next(iter(self._entries)))

    def find(self, request_id: str) -> tuple[str, Sequence[bytes]] | None:
        """(the model's name, the files)."""
        return self._entries.get(request_id)

    def _remove(self, request_id: str) -> None:
        entry = self._entries.pop(request_id, None)
        if entry is not None:
            self._held -= _size(entry[1])


def _size(files: Sequence[bytes]) -> int:
    return _OVERHEAD + sum(map(len, files))
