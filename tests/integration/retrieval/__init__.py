"""Retrieval with the real encoder on eight passages."""
