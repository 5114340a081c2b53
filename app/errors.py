"""What can go wrong, named by what happened; nothing here knows HTTP.

GraftError
├── BundleError               a folder that cannot be served, by name/version/file and field
│   ├── ManifestInvalid       not JSON, an unknown, missing or ill-typed field
│   ├── SchemaTooNew          written by a newer Graft
│   ├── UnsafePath            a file name that is absolute, has a folder in it, or climbs
│   ├── BundleFileMissing     listed in the manifest, not in the folder
│   ├── ChecksumMismatch      not the bytes that were exported
│   ├── ExternalData          a graph whose weights lie outside it
│   ├── GraphMismatch         a graph that does not load, or differs from the manifest
│   ├── ReferenceInvalid      an npz that is none, or whose arrays do not fit the manifest
│   ├── ProviderMissing       a graph that runs on none of the execution providers asked for
│   ├── GoldenMismatch        does not reproduce on this machine what it gave at export
│   └── BundleExists          this version is already there; bundles are never overwritten
├── ImageError                one image; carries its index in the request
│   ├── NotAnImage            bytes of no format that we read
│   ├── BrokenImage           a format that we read, and cannot
│   ├── TooManyPixels         by its header; nothing was decoded
│   └── DecoderEnded          the process that decoded it did not live to its end, or could not be started
├── RequestError
│   ├── MalformedRequest
│   ├── UnsupportedMediaType
│   ├── NotAcceptable         no form of answer that the caller takes
│   ├── Unauthorised
│   ├── CrossOrigin            a page of another origin would change what is served
│   ├── BodyTooLarge
│   ├── BodyTooSlow
│   └── TooManyImages
├── UnknownModel
├── LoadingNotAllowed         models come and go by other means than calls
├── OperationUnavailable      the model lacks the part that the operation needs
├── PartMissing               the bundle carries no such document or map
├── QueueFull                 with the seconds after which to try again
│   └── TooManyConnections
├── DeadlinePassed
├── NotFinite                 a graph gave numbers that are none, for an image that is one
├── NotReady
├── SettingsInvalid           found before the service starts
└── CannotScore               found before files are scored: by their paths, the output, or the operation
"""


class GraftError(Exception):
    """The message is for the person who can mend it: it names the thing, and where one exists the mend."""


class BundleError(GraftError):
    pass


class ManifestInvalid(BundleError):
    pass


class SchemaTooNew(BundleError):
    pass


class UnsafePath(BundleError):
    pass


class BundleFileMissing(BundleError):
    pass


class ChecksumMismatch(BundleError):
    pass


class ExternalData(BundleError):
    pass


class GraphMismatch(BundleError):
    pass


class ReferenceInvalid(BundleError):
    pass


class ProviderMissing(BundleError):
    pass


class GoldenMismatch(BundleError):
    pass


class BundleExists(BundleError):
    pass


class ImageError(GraftError):
    """`index` is the image's place in its request; None until a caller that knows it sets it."""

    index: int | None = None


class NotAnImage(ImageError):
    pass


class BrokenImage(ImageError):
    pass


class TooManyPixels(ImageError):
    pass


class DecoderEnded(ImageError):
    pass


class RequestError(GraftError):
    """`index` as for ImageError, where one image's envelope is at fault."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class MalformedRequest(RequestError):
    pass


class UnsupportedMediaType(RequestError):
    pass


class NotAcceptable(RequestError):
    pass


class Unauthorised(RequestError):
    pass


class CrossOrigin(RequestError):
    pass


class BodyTooLarge(RequestError):
    pass


class BodyTooSlow(RequestError):
    pass


class TooManyImages(RequestError):
    pass


class UnknownModel(GraftError):
    pass


class LoadingNotAllowed(GraftError):
    pass


class OperationUnavailable(GraftError):
    pass


class PartMissing(GraftError):
    pass


class QueueFull(GraftError):
    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlinePassed(GraftError):
    pass


class TooManyConnections(QueueFull):
    pass


class NotFinite(GraftError):
    pass


class NotReady(GraftError):
    pass


class SettingsInvalid(GraftError):
    pass


class CannotScore(GraftError):
    pass


def kebab(name: str) -> str:
    """As problems are named: NotAnImage → not-an-image; "Method Not Allowed" → method-not-allowed."""
    return "".join(f"-{c}" if c.isupper() else c for c in name.replace(" ", "")).lower().lstrip("-")
