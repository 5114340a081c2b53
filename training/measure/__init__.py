"""What a bundle reaches on a set, measured through the code that serves it."""
