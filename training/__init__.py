"""Training, offline: images in, a bundle and the truth about it out. Of `app` it imports app.bundle alone."""
