"""The error tree. Every message says what is wrong, where, and what mends it.

The command line turns a ``RookeryError`` into its message on stderr and its ``exit_code``: 2 when the
user can mend the cause, 1 when the fault is ours or the machine's.
"""

from __future__ import annotations


class RookeryError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1
    is_told_elsewhere = False
    """Whether another process of the run prints the message."""


class UserError(RookeryError):
    """Something the user wrote or passed is wrong; the message carries the remedy."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration that cannot be run: field, value, remedy."""


class DataError(UserError):
    """Input data that cannot be used: file, row group or row, column, value, remedy."""


class UnknownId(UserError):
    """A user or post that was named is not known; the message has the nearest one that is."""


class RunNotFound(UserError):
    """A run directory or checkpoint that was named does not exist or holds nothing to load."""


class MissingExtra(UserError):
    """An optional dependency is needed and absent; the message names the extra that brings it."""


class CheckpointError(RookeryError):
    """A checkpoint could not be written, or one that is stored cannot be read."""


class TrainingError(RookeryError):
    """Training had to stop: the loss is not finite, or a worker failed."""


class ReadersGone(TrainingError):
    """No reader has answered for as long as training waits for one; what was trained so far can be saved."""


class PeerFailed(RookeryError):
    """Another process of the run failed, and says why; this one ends with it."""


class ExportError(RookeryError):
    """An exported model does not predict what its checkpoint predicts; nothing was written."""
