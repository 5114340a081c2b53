"""Where to spend the next hour of labelling."""
