"""Weights → a proven, documented bundle."""
