"""Learning from feedback: a next version that is published only if it is better, without torch."""
