"""Measuring a bundle on a set of images, through the code that serves it."""
