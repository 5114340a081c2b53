"""Training, offline: images in, a measured bundle out. It imports nothing of `app` but app.bundle."""
