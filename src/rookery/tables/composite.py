"""Tables of one run in two back ends: some sharded, some whole in every process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from rookery.parallel.world import world_size
from rookery.tables.protocol import TableBackend, TableSpec
from rookery.tables.together import tied, with_absent


class CompositeTables:
    """Each table in one of several back ends (implements ``TableBackend``)."""

    def __init__(self, specs: Sequence[TableSpec], backends: Iterable[TableBackend]) -> None:
        self.specs: Sequence[TableSpec] = tuple(specs)
        self._backends = tuple(backends)
        self._backend_of = {spec.name: backend for backend in self._backends for spec in backend.specs}

    def lookup(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if world_size() == 1:
            return self._lookup(ids)
        together = tied(self._lookup(with_absent(ids, tuple(self.specs))))
        return {name: together[name] for name in ids}

    def _lookup(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {}
        for backend in self._backends:
            rows |= backend.lookup(self._of(backend, ids))
        return rows

    def expect(self, ids: Mapping[str, Tensor]) -> None:
        for backend in self._backends:
            backend.expect(self._of(backend, ids))

    def _of(self, backend: TableBackend, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: ids[name] for name in ids if self._backend_of[name] is backend}

    def rows(self, table: str) -> Tensor:
        return self._backend_of[table].rows(table)

    def set_learning_rate(self, table: str, learning_rate: float) -> None:
        self._backend_of[table].set_learning_rate(table, learning_rate)

    def set_accumulating(self, accumulating: bool) -> None:
        for backend in self._backends:
            backend.set_accumulating(accumulating)

    def weights(self) -> dict[str, Tensor]:
        found = {name: weight for backend in self._backends for name, weight in backend.weights().items()}
        return {spec.name: found[spec.name] for spec in self.specs}

    def optimizer_state(self) -> dict[str, Tensor]:
        return {name: state for backend in self._backends for name, state in backend.optimizer_state().items()}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for backend in self._backends:
            backend.load_weights(tensors)

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        for backend in self._backends:
            backend.load_optimizer_state(tensors)
