"""The errors a user can cause or must know of. Each ends a run with its message alone."""

from __future__ import annotations

__all__ = ["GleanerError", "InfrastructureError", "UserError", "WeightProofError"]


class GleanerError(Exception):
    """Base of every error raised on purpose. The message says what to do."""


class UserError(GleanerError):
    """Bad input or an unfit machine: shown without a stack trace, exit code 2."""


class InfrastructureError(GleanerError):
    """A pool member crashed or missed its deadline. Retried elsewhere; never reward 0."""


class WeightProofError(InfrastructureError):
    """An engine could not prove that it holds the published weights. It must not be used."""
