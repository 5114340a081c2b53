"""The contract between training and serving. Usable without a server; training takes all it needs from here.

What is named here is imported when it is asked for: a process that only decodes does without onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.bundle.bundle import Bundle
    from app.bundle.manifest import SCHEMA_VERSION, InputSpec, Manifest
    from app.bundle.preprocess import preprocess, preprocess_pixels
    from app.bundle.store import assemble, load, save, with_references
    from app.errors import BrokenImage, BundleError, BundleExists, GraftError, ImageError, NotAnImage, TooManyPixels

_FROM = {
    "app.bundle.bundle": ("Bundle",),
    "app.bundle.manifest": ("SCHEMA_VERSION", "InputSpec", "Manifest"),
    "app.bundle.preprocess": ("preprocess", "preprocess_pixels"),
    "app.bundle.store": ("assemble", "load", "save", "with_references"),
    "app.errors": (
        "BrokenImage",
        "BundleError",
        "BundleExists",
        "GraftError",
        "ImageError",
        "NotAnImage",
        "TooManyPixels",
    ),
}

__all__ = [
    "SCHEMA_VERSION",
    "BrokenImage",
    "Bundle",
    "BundleError",
    "BundleExists",
    "GraftError",
    "ImageError",
    "InputSpec",
    "Manifest",
    "NotAnImage",
    "TooManyPixels",
    "assemble",
    "load",
    "preprocess",
    "preprocess_pixels",
    "save",
    "with_references",
]


def __getattr__(name: str) -> Any:
    for module, names in _FROM.items():
        if name in names:
            value = getattr(import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
