"""Runs beside each other: the index that every run writes to, and what `graft-train runs` makes of it."""
