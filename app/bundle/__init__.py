"""The contract between training and serving. It works without a server; training imports nothing else of `app`.

`Bundle`, `load` and `save` are imported on first use: a process that only decodes needs no onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from app.bundle.manifest import SCHEMA_VERSION, InputSpec, Manifest
from app.bundle.preprocess import preprocess, preprocess_pixels
from app.errors import BrokenImage, BundleError, BundleExists, GraftError, ImageError, NotAnImage, TooManyPixels

if TYPE_CHECKING:
    from app.bundle.bundle import Bundle
    from app.bundle.session import prefer_gpu
    from app.bundle.store import assemble, load, save, with_patches, with_references

_LATER = {
    "Bundle": "app.bundle.bundle",
    "prefer_gpu": "app.bundle.session",
    **dict.fromkeys(("assemble", "load", "save", "with_patches", "with_references"), "app.bundle.store"),
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
    "prefer_gpu",
    "preprocess",
    "preprocess_pixels",
    "save",
    "with_patches",
    "with_references",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
