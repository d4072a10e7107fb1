"""Growth: cheap outer steps first. A set is begun with narrow networks and small real batches, and ended with those of the pipeline.

Not in the paper. A fresh network is drawn for every outer step, so a narrower one needs nothing carried over, and convolutions cost with
the square of the width. The meta-gradient is that of the narrower networks, which is why the last part of the run has the full width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import attrs

from distilkit import fields
from distilkit.boosting import Stage
from distilkit.errors import CombinationError, FieldError, counted
from distilkit.learner import Learner


@fields.component
class Growth:
    """Parts of each stage, one after the other, of which the earlier are cheaper. After the last of them the pipeline is as it says.

    Args:
        until: where each part ends, as a share of the stage's outer steps, in rising order.
        widths: of the inner networks in each part, in place of `learner.network.width`; None leaves it. Networks that judge the set
            always have the full width. With `unroller.precision = "auto"` the full width decides for all parts.
        batch_sizes: of the real batch in each part, in place of `outer.batch_size`; None leaves it.

    Raises:
        CombinationError: shares that do not rise, lists of different lengths, or nothing that changes.

    >>> growth = Growth(until=(0.5, 0.8), widths=(32, 64))
    >>> growth.lengths(1000)
    (500, 300, 200)
    """

    until: Sequence[float] = fields.numbers(above=0, below=1)
    widths: Sequence[int] | None = fields.integers(default=None, optional=True)
    batch_sizes: Sequence[int] | None = fields.integers(default=None, optional=True)

    def __attrs_post_init__(self) -> None:
        if list(self.until) != sorted(set(self.until)):
            raise CombinationError(f"growth.until = {list(self.until)} does not rise.", fix=f"until = {sorted(set(self.until))}")
        if self.widths is None and self.batch_sizes is None:
            raise CombinationError("growth has neither widths nor batch_sizes, so nothing would grow.", fix="growth=None")
        for name in ("widths", "batch_sizes"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.until):
                raise CombinationError(
                    f"growth.{name} = {list(given)} has {counted(len(given), 'number')}, and growth.until = {list(self.until)} ends "
                    f"{counted(len(self.until), 'part')}: one for each is needed.",
                    fix=f"{name} = {[given[min(i, len(given) - 1)] for i in range(len(self.until))]}",
                )

    def lengths(self, steps: int) -> tuple[int, ...]:
        """Outer steps of each part of a stage of so many, that of the whole pipeline last, which has one at least."""
        ends = [0, *(min(round(share * steps), steps - 1) for share in self.until), steps]
        return tuple(after - before for before, after in pairwise(ends))


class Piece(NamedTuple):
    """Outer steps that are alike: those of a stage, or of a part of one where there is growth.

    stage: of the boost schedule. first: its first outer step, counted within the stage. steps: how many.
    width, outer_batch_size: in place of the pipeline's, or None.
    """

    stage: Stage
    first: int
    steps: int
    width: int | None = None
    outer_batch_size: int | None = None

    def learner(self, learner: Learner) -> Learner:
        """The learner with a network of this width.

        Raises:
            CombinationError: the network has none, a smaller one, or cannot have this one.
        """
        if self.width is None:
            return learner
        network: Any = learner.network
        known: dict[str, Any] = attrs.fields_dict(type(network)) if attrs.has(type(network)) else {}
        if "width" not in known:
            raise CombinationError(f"growth.widths needs a network with a width, and {type(network).__name__} has none.", fix="growth=None")
        if self.width > network.width:
            raise CombinationError(f"growth.widths has {self.width}, and the network has width {network.width}.", fix="growth=None")
        try:
            return fields.evolve(learner, network=fields.evolve(network, width=self.width))
        except FieldError as error:
            raise CombinationError(f"growth.widths has {self.width}, which this network cannot have: {error.message}") from error

    def batch_size(self, size: int) -> int:
        """Of the real batch, where the pipeline's is `size`."""
        return self.outer_batch_size or size


def pieces(stages: Sequence[Stage], growth: Growth | None) -> tuple[Piece, ...]:
    """The stages of a run, each in the parts of its growth; parts without an outer step are left out."""
    if growth is None:
        return tuple(Piece(stage, 0, stage.steps) for stage in stages)
    widths, sizes = ((*(given or (None,) * len(growth.until)), None) for given in (growth.widths, growth.batch_sizes))
    found = []
    for stage in stages:
        first = 0
        for steps, width, size in zip(growth.lengths(stage.steps), widths, sizes, strict=True):
            found += [Piece(stage, first, steps, width, size)] if steps else []
            first += steps
    return tuple(found)
