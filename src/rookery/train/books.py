"""Where a run stands in its data, and the proof that it was given every row of an epoch once."""

from __future__ import annotations

import logging
from typing import Any

from rookery.checkpoint.files import State
from rookery.data.ledger import Ledger
from rookery.data.prefetch import Prepared
from rookery.data.stream import BatchStream, StreamPosition
from rookery.errors import TrainingError
from rookery.parallel.world import gather_objects, is_chief

logger = logging.getLogger(__name__)


class Books:
    """``position`` is behind the batch that was trained on last; the stream itself may be further on.

    Of several processes each keeps its own and calls the methods together; what is stored is that of all.
    """

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream
        self.position = stream.position()
        self._ledger = stream.ledger()
        self._since = self._num_proved = self._num_skipped = 0

    @property
    def epochs(self) -> float:
        """Epochs that were trained on, with the part of the last one."""
        return self.position.epoch + self.position.num_batches / self._stream.batches_per_epoch

    @property
    def batches_done(self) -> int:
        """Batches that were trained on, over all epochs."""
        return self.position.epoch * self._stream.batches_per_epoch + self.position.num_batches

    def keep(self, prepared: Prepared[Any]) -> None:
        """Note what was trained on; at the end of an epoch prove that it was every row once.

        Raises ``TrainingError`` where it was not.
        """
        self.position, self._ledger = prepared.position, prepared.ledger
        epoch = self.position.epoch
        if self.position.num_batches < self._stream.batches_per_epoch or epoch < self._since:
            return
        ledger, expected = Ledger.merged(gather_objects(prepared.ledger)), self._stream.expected()
        if not ledger.accounts_for(expected):
            raise TrainingError(
                f"epoch {epoch:,} read {ledger.rows:,} rows and skipped {ledger.skipped:,} of {expected.rows:,}, and "
                "not each of them once: the data changed during the run, or this is a fault of the reader's; start a "
                "new run, and report it if the data are what they were"
            )
        if ledger.skipped:
            logger.warning("epoch %d: %d of %d rows could not be read", epoch, ledger.skipped, expected.rows)
        self._num_proved, self._num_skipped = self._num_proved + 1, self._num_skipped + ledger.skipped

    def state(self) -> State:
        """For the checkpoint: ``stream`` and ``ledger``."""
        return {
            "stream": self.position.to_json(),
            "ledger": {
                "current": Ledger.merged(gather_objects(self._ledger)).to_json(),
                "since": self._since,
                "epochs_proved": self._num_proved,
                "rows_skipped": self._num_skipped,
            },
        }

    def restore(self, state: State) -> None:
        """Go on where ``state`` was taken; the stream hands out what comes behind it."""
        self.position = StreamPosition(**state["stream"])
        self._stream.seek(self.position)
        stored = state.get("ledger")
        if stored is None:  # by an earlier version: this epoch cannot be proved
            self._since = self.position.epoch + 1
            return
        self._since, self._num_proved, self._num_skipped = (
            stored[name] for name in ("since", "epochs_proved", "rows_skipped")
        )
        if is_chief():  # what all processes handed out is taken over once
            self._stream.resume_ledger(Ledger(**stored["current"]))
        self._ledger = self._stream.ledger()
