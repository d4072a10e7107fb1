"""What one process of several takes of a run: a pipeline of its own, which is estimated and probed like a whole one.

It has the networks and the parts of the real batch that the first process takes of an outer step; no other takes more. What comes on top
is memory: for the rest of the real batch, which every process draws, and for what the processes tell each other.
"""

from __future__ import annotations

import math
import os

import attrs
from torch import Tensor

from distilkit import fields, ranks
from distilkit.data.bundle import Loaded
from distilkit.distiller import Distiller
from distilkit.growth import Piece
from distilkit.runs.estimate import Plan

FLOAT = 4  # bytes


@attrs.frozen(eq=False)
class ProcessShare:
    """The share of the first of so many processes.

    Args:
        distiller: the whole pipeline.
        processes: how many.

    Raises:
        CombinationError: a process would have nothing to do; the networks of an outer step are stacked.
    """

    distiller: Distiller
    processes: int
    shares: ranks.Shares = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "shares", self.distiller.unroller.shares(ranks.Ranks(size=self.processes)))

    @property
    def parts(self) -> int:
        """Parts of the real batch of a network that a process takes."""
        return math.ceil(self.distiller.unroller.micro_batches / self.shares.members)

    def pipeline(self) -> Distiller:
        """The pipeline of what the process takes."""
        whole, unroller = self.distiller, self.distiller.resolved_unroller
        own = fields.evolve(unroller.one_after_the_other(), networks_per_step=len(self.shares.networks(0)), micro_batches=self.parts)
        outer = fields.evolve(whole.outer, batch_size=self._batch(whole.outer.batch_size))
        growth = whole.growth
        if growth is not None and growth.batch_sizes is not None:
            growth = fields.evolve(growth, batch_sizes=tuple(map(self._batch, growth.batch_sizes)))
        return fields.evolve(whole, data=Loaded(whole.bundle), unroller=own, outer=outer, growth=growth)

    def completed(self, draft: Plan, piece: Piece) -> Plan:
        """The plan of a piece of the share, with what every process holds besides.

        Args:
            draft: of the share.
            piece: of the whole pipeline.
        """
        whole, shares = self.distiller, self.shares
        leaves = whole.template(piece.stage.number).leaves
        batch = min(piece.batch_size(whole.outer.batch_size), len(whole.bundle.train))
        image = math.prod(whole.bundle.image_shape) + whole.bundle.num_classes
        rest = FLOAT * image * (batch - self._batch(batch))
        theta = FLOAT * (1 + whole.piece_learner(piece).layout.size)
        told_in_team = theta * self.parts * (2 + shares.members) if shares.members > 1 else 0
        one, slots = FLOAT * (1 + _numbers(leaves)), math.ceil(shares.total / shares.teams)
        return attrs.evolve(
            draft,
            processes=self.processes,
            step_peak=max(draft.step_peak, told_in_team) + rest,
            exchange_bytes=one * shares.total,
            # Its own, in rows, and the rows of all; then those are taken apart.
            exchange_peak=one * (slots * (2 + self.processes) + max(slots, shares.total)) + FLOAT * image * batch,
        )

    def _batch(self, size: int) -> int:
        """Images of a real batch of this size that the process takes."""
        size = min(size, len(self.distiller.bundle.train))
        return size if self.shares.members == 1 else self.distiller.unroller.micro_batch(size) * self.parts


def threads_of_one() -> int:
    """CPU threads of one of several processes, where the spec does not say."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def _numbers(leaves: tuple[Tensor, ...]) -> int:
    return sum(x.numel() for x in leaves)
