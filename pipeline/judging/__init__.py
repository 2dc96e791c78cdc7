"""Judging with language models: the prompt, the verdict's form, the cache, canaries, the audit.

Pure Python over ``pipeline.types``: what talks to a model is in ``actors/``.
"""
