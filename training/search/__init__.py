"""Recipes measured on training images alone: each fold by what learnt from the others."""
