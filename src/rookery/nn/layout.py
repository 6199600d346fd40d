"""Where the parts of a row lie in the one vector that a network reads. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InputLayout:
    """``width`` numbers a row; ``fields`` are the ``(start, width)`` of the embeddings among them, in rising order.

    What is in no field is dense: numbers that are features by themselves. Only networks that pair fields tell the
    two apart.
    """

    width: int
    fields: tuple[tuple[int, int], ...] = ()

    @property
    def dense(self) -> tuple[tuple[int, int], ...]:
        """``(start, width)`` of the stretches between the fields."""
        stretches, end = [], 0
        for start, width in (*self.fields, (self.width, 0)):
            if start > end:
                stretches.append((end, start - end))
            end = start + width
        return tuple(stretches)
