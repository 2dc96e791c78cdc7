"""Measured comparisons, two things in one run: ``make bench-NAME``."""
