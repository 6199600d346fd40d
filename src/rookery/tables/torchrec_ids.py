"""The way of ids to the processes that hold their rows.

Ids need nothing of the step before, so those of the next batch travel while this one computes: in a thread, and in a
process group of its own, where the order of messages is that of the batches whatever else the processes say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from rookery.parallel.world import all_max, own_group, world_size
from rookery.tables.protocol import TableSpec
from rookery.tables.torchrec_plan import inner_name, quiet

with quiet():
    from torchrec.distributed.embedding_types import KJTList
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionContext, ShardedEmbeddingBagCollection
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Arrived = tuple[EmbeddingBagCollectionContext, KJTList]
"""Of one table: what the way back needs to know, and the ids of all processes whose rows this one holds."""


class IdExchange:
    """Sends the ids of lookups, in the order in which they begin: the same on every process.

    Of several processes all make one together; a process alone sends nothing and has no thread.
    """

    def __init__(self, specs: Sequence[TableSpec], collections: Mapping[str, ShardedEmbeddingBagCollection]) -> None:
        self._sizes = {spec.name: spec.num_embeddings for spec in specs}
        self._inner = {spec.name: inner_name(position) for position, spec in enumerate(specs)}
        self._collections = collections
        nothing = torch.empty(0, dtype=torch.int64)
        self._send({name: self._bags(name, nothing) for name in collections})  # makes the parts that send
        if world_size() > 1:
            self._group = own_group()
            # torchrec makes both ways with one group, and has no setting for this one alone.
            for collection in collections.values():
                for part in collection._input_dists:  # noqa: SLF001
                    part._dist._pg = self._group  # noqa: SLF001
            self._thread = ThreadPoolExecutor(1, "ids")
        self._begun: list[tuple[Mapping[str, Tensor], Future[dict[str, Arrived]]]] = []

    def begin(self, ids: Mapping[str, Tensor]) -> None:
        """Send the ids of a later lookup; what is wrong with them ``take`` raises."""
        self._begun.append((ids, self._submit(ids)))

    def take(self, ids: Mapping[str, Tensor]) -> dict[str, Arrived]:
        """What has arrived for a lookup of ``ids``, by table; of several processes, for all tables.

        Waits for what was begun with these tensors, else sends them now. What was begun before is forgotten. Raises
        ``IndexError`` for ids that no row has.
        """
        if world_size() == 1:
            return self._send({name: self._bags(name, row_numbers) for name, row_numbers in ids.items()})
        assert ids, "a rank without rows names its tables with 0 ids: the others wait for its backward pass"
        for place, (begun, arriving) in enumerate(self._begun):
            if _are_same(begun, ids):
                del self._begun[: place + 1]
                return arriving.result()
        return self._submit(ids).result()

    def _submit(self, ids: Mapping[str, Tensor]) -> Future[dict[str, Arrived]]:
        """Sent by the one thread even where nothing else is done meanwhile: in order behind what began before."""
        return self._thread.submit(self._send_checked, ids)

    def _send_checked(self, ids: Mapping[str, Tensor]) -> dict[str, Arrived]:
        nothing = torch.empty(0, dtype=torch.int64)
        asked = {name: ids.get(name, nothing) for name in self._collections}
        for name, row_numbers in asked.items():
            self._check_range(name, row_numbers)
        # Row-wise kinds exchange blocks of one size: whoever has fewer ids than another rank adds empty bags.
        most = all_max(torch.tensor([len(row_numbers) for row_numbers in asked.values()]), self._group).tolist()
        return self._send(
            {
                name: self._bags(name, row_numbers, num_bags - len(row_numbers))
                for (name, row_numbers), num_bags in zip(asked.items(), most, strict=True)
            }
        )

    def _send(self, bags: Mapping[str, KeyedJaggedTensor]) -> dict[str, Arrived]:
        contexts = {name: self._collections[name].create_context() for name in bags}
        counted = {name: self._collections[name].input_dist(contexts[name], each) for name, each in bags.items()}
        sent = {name: each.wait() for name, each in counted.items()}  # how many come is known: now they themselves
        return {name: (contexts[name], each.wait()) for name, each in sent.items()}

    def _bags(self, name: str, row_numbers: Tensor, num_empty: int = 0) -> KeyedJaggedTensor:
        """A bag for each id, and empty ones behind them."""
        lengths = nn.functional.pad(torch.ones_like(row_numbers), (0, num_empty))
        return KeyedJaggedTensor(keys=[self._inner[name]], values=row_numbers, lengths=lengths)

    def _check_range(self, name: str, row_numbers: Tensor) -> None:
        """Over several ranks an id out of range would be a row of some other rank (torchrec takes it modulo)."""
        if len(row_numbers):
            low, high = (int(bound) for bound in torch.aminmax(row_numbers))
            if low < 0 or high >= self._sizes[name]:
                raise IndexError(f"table {name} has {self._sizes[name]} rows, asked for {low if low < 0 else high}")


def _are_same(begun: Mapping[str, Tensor], ids: Mapping[str, Tensor]) -> bool:
    """Whether a lookup of ``ids`` is of the tensors that ``begun`` has, and of no others but empty ones."""
    return all(name in ids and ids[name] is each for name, each in begun.items()) and not any(
        len(each) for name, each in ids.items() if name not in begun
    )
