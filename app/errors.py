"""All errors, named by what happened. Nothing here knows HTTP: app/api/problems.py maps them to status codes.

GraftError
├── BundleError               a bundle that cannot be loaded or saved; the message begins with name/version/file
│   ├── ManifestInvalid       not JSON, or a field is unknown, missing or of the wrong type
│   ├── SchemaTooNew          written by a newer Graft
│   ├── UnsafePath            a file name that is absolute, contains a folder, or leaves the bundle
│   ├── BundleFileMissing     listed in the manifest, but not in the folder
│   ├── ChecksumMismatch      a file differs from what was exported
│   ├── ExternalData          a graph keeps weights in another file
│   ├── GraphMismatch         a graph does not load, or differs from the manifest
│   ├── ReferenceInvalid      not an npz file, or its arrays do not fit the manifest
│   ├── ProviderMissing       a graph runs on none of the requested execution providers
│   ├── GoldenMismatch        this machine does not reproduce the golden pairs
│   └── BundleExists          the version exists already; bundles are never overwritten
├── ImageError                one image; `index` is its position in the request
│   ├── NotAnImage            the bytes are not of a supported format
│   ├── BrokenImage           a supported format, but it does not decode
│   ├── TooManyPixels         according to the header; nothing was decoded
│   └── DecoderEnded          the process that decoded it ended, or could not be started
├── RequestError
│   ├── MalformedRequest
│   ├── UnsupportedMediaType
│   ├── NotAcceptable         the Accept header has no format that the route can send
│   ├── Unauthorised
│   ├── CrossOrigin           a page of another origin asked for a change
│   ├── BodyTooLarge
│   ├── BodyTooSlow
│   └── TooManyImages
├── UnknownModel
├── LoadingNotAllowed         the settings do not let requests load or unload models
├── FeedbackNotAllowed        the settings name no folder for feedback
├── RequestForgotten          feedback on a request whose images are not in memory
├── NotStored                 feedback for which the spool or the disk has no room
├── OperationUnavailable      the model lacks a part that the operation needs
├── PartMissing               the bundle has no such document or map
├── QueueFull                 has the seconds to wait before a retry
│   └── TooManyConnections
├── DeadlinePassed
├── NotFinite                 a graph returned NaN or infinity
├── NotReady
├── SettingsInvalid           raised before the service starts
└── CannotScore               the offline scorer cannot run with these paths, output or options
"""

from functools import cache


class GraftError(Exception):
    """The message is for the person who can fix it: what is wrong, where, and what to do."""


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
    """`index` is the image's position in the request; None until the caller that knows it sets it."""

    index: int | None = None


class NotAnImage(ImageError):
    pass


class BrokenImage(ImageError):
    pass


class TooManyPixels(ImageError):
    pass


class DecoderEnded(ImageError):
    pass


Faults = dict[int, GraftError]  # what is wrong with some images of a request, by their index


class RequestError(GraftError):
    """`index` as for ImageError, if the fault lies in one image's part of the request."""

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


class FeedbackNotAllowed(GraftError):
    pass


class RequestForgotten(GraftError):
    pass


class NotStored(GraftError):
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


@cache  # called for each refusal, with the few names that there are
def kebab(name: str) -> str:
    """The name of a problem: NotAnImage → not-an-image; "Method Not Allowed" → method-not-allowed."""
    return "".join(f"-{c}" if c.isupper() else c for c in name.replace(" ", "")).lower().lstrip("-")
