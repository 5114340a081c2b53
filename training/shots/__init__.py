"""A model from a few images of each class, without torch."""
