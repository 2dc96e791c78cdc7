"""Compares arms (algorithms, judges, corrections) over seeds: runs, statistics, pictures."""
