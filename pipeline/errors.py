"""The errors a user can cause or must know of. Each ends a run with its message alone."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = [
    "ActorLostError",
    "FullDiskError",
    "GleanerError",
    "InfrastructureError",
    "LateError",
    "StoppedError",
    "UserError",
    "WeightProofError",
    "first_error",
]


class GleanerError(Exception):
    """Base of every error raised on purpose. The message says what to do."""


class UserError(GleanerError):
    """Bad input or an unfit machine: shown without a stack trace, exit code 2."""


class StoppedError(UserError):
    """A run that could go on stops itself until its user has decided something. It is not started
    again by itself: that could cost money."""


class FullDiskError(GleanerError):
    """There is no room, at this moment, for what must be written."""


class InfrastructureError(GleanerError):
    """A pool member crashed or missed its deadline. Retried elsewhere; never reward 0."""


class ActorLostError(InfrastructureError):
    """The actor is dead or says itself that it can no longer work. It must be replaced."""


class LateError(InfrastructureError):
    """An actor missed its deadline; nobody knows whether it still works."""


class WeightProofError(InfrastructureError):
    """An engine could not prove that it holds the published weights. It must not be used."""


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of a (nested) group to show; an error made on purpose goes before others."""
    leaves = list(_leaves(errors))
    return next((e for e in leaves if isinstance(e, GleanerError)), leaves[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
