"""The contract between training and serving. It works without a server; training imports nothing else of `app`."""

from app.bundle.bundle import Bundle
from app.bundle.manifest import SCHEMA_VERSION, InputSpec, Manifest
from app.bundle.preprocess import preprocess, preprocess_pixels
from app.bundle.store import load, save
from app.errors import BrokenImage, BundleError, BundleExists, GraftError, ImageError, NotAnImage, TooManyPixels

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
    "load",
    "preprocess",
    "preprocess_pixels",
    "save",
]
