"""The contract between training and serving. Usable without a server; training takes all it needs from here.

`Bundle`, `load` and `save` are imported when they are asked for: a process that only decodes does without onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from app.bundle.manifest import SCHEMA_VERSION, InputSpec, Manifest
from app.bundle.preprocess import preprocess, preprocess_pixels
from app.errors import BrokenImage, BundleError, BundleExists, GraftError, ImageError, NotAnImage, TooManyPixels

if TYPE_CHECKING:
    from app.bundle.bundle import Bundle
    from app.bundle.store import assemble, load, save, with_references

_LATER = {
    "Bundle": "app.bundle.bundle",
    **dict.fromkeys(("assemble", "load", "save", "with_references"), "app.bundle.store"),
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
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
