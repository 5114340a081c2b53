"""From a folder to a bundle: looks, plans, races recipes under a time budget, publishes, and says what came of it."""
