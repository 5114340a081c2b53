"""Fitting what the anomaly score and the served model need besides weights. No torch."""
