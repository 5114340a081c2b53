"""The Graft service: bundles in, answers out. Imports neither torch nor training."""

__version__ = "0.1.0"
