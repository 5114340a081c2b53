"""Images on disk → arrays and labels: one format a file, splits, checks, downloads."""
