"""Boosting: one distilled set whose first images are a good smaller set (Feng, Vedantam and Kempe, 2024).

A set is made in stages. Stage 0 distils a first block of images. Each later stage adds a block, keeps the earlier rows where
they are, and distils the union, the earlier rows taking a smaller outer STEP. Every prefix of blocks is then a usable set.

The step is scaled and not the gradient: Adam divides by the size of the gradient, so a scaled gradient moves the rows as far
as an unscaled one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import attrs
import torch
from torch import Tensor

from distilkit import fields
from distilkit.errors import CombinationError, FieldError, counted

Minibatch = Literal["union", "each block"]


class Stage(NamedTuple):
    """One stage of a run; a run without boosting has one.

    number: from 0. blocks: images per class of each block so far. steps: outer steps. truncation: the policy.
    scales: factor on the outer step of each block.
    """

    number: int
    blocks: tuple[int, ...]
    steps: int
    truncation: Any
    scales: tuple[float, ...]

    @property
    def per_class(self) -> int:
        """Images per class of the union so far."""
        return sum(self.blocks)

    def classes(self, count: int) -> Tensor:
        """int64 (N,): the class of each row of the union: block after block, and class by class within a block."""
        return torch.cat([torch.arange(count).repeat_interleave(size) for size in self.blocks])

    def block(self, count: int) -> Tensor:
        """int64 (N,): the block of each row of the union."""
        return torch.arange(len(self.blocks)).repeat_interleave(torch.tensor(self.blocks) * count)

    def rows(self, count: int) -> tuple[int, ...]:
        """Rows of each block, for this many classes."""
        return tuple(size * count for size in self.blocks)


def single_stage(per_class: int, steps: int, truncation: Any) -> tuple[Stage, ...]:
    """The one stage of a run without boosting."""
    return (Stage(0, (per_class,), steps, truncation, (1.0,)),)


_ONE = {"type": "integer", "minimum": 1}  # JSON Schema


def _check_steps(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    each = value if isinstance(value, tuple) else (value,)
    if value is not None and (not each or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in each)):
        raise FieldError(attribute.name, list(value) if isinstance(value, tuple) else value, attribute.metadata["allowed"])


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@fields.component
class BoostSchedule:
    """Distil a set in stages, so that every prefix of its blocks is a good smaller set.

    In the stage that adds block k, a row of block j moves by

        row = row + beta lr u,    beta = old_step_scale if j < k else 1

    where u is the outer optimiser's update of learning rate one. Each block has an optimiser state of its own: old rows carry
    theirs (with Adam, both moments and their count), new rows start a fresh one. The clip looks at the gradient of the whole
    union, and its average is carried on. The schedule of the outer learning rate starts afresh in every stage. A learned inner
    learning rate belongs to the whole set and moves with full steps throughout.

    Args:
        blocks: images per class that each stage adds.
        steps: outer steps of a stage, one number for all of them or a list with one for each; left out, `outer.steps` for each.
        old_step_scale: beta. 0 freezes the earlier rows to the bit, 1 is plain continued distillation of the union.
        minibatch: which blocks take part where `learner.batch_per_class` is set. "union": that many rows of a class are drawn from
            all blocks so far together (all of them, where there are not more). "each block": that many rows of a class are drawn
            from every block so far, so that every block is in every inner step.
        horizons: inner steps T of each stage, in place of the truncation policy's `horizon`.
        windows: length M of each stage, in place of the truncation policy's `window`.

    Raises:
        CombinationError: `steps`, `horizons` or `windows` is of another length than `blocks`.

    >>> schedule = BoostSchedule(blocks=(1, 4, 5), steps=(100, 50, 50), old_step_scale=0.1)
    >>> [(s.per_class, s.steps, s.scales) for s in schedule.stages(1000, None)]
    [(1, 100, (1.0,)), (5, 50, (0.1, 1.0)), (10, 50, (0.1, 0.1, 1.0))]
    """

    blocks: Sequence[int] = fields.integers(default=(1, 4, 5))
    steps: int | Sequence[int] | None = attrs.field(
        default=None,
        converter=_as_tuple,
        validator=_check_steps,
        metadata={
            "allowed": "a whole number, at least 1, or a list with one for each block",
            "list": True,
            "schema": {"oneOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1}]},
        },
    )
    old_step_scale: float = fields.number(default=0.1, least=0)
    minibatch: Minibatch = fields.choice(Minibatch, default="union")
    horizons: Sequence[int] | None = fields.integers(default=None, optional=True)
    windows: Sequence[int] | None = fields.integers(default=None, optional=True)

    def __attrs_post_init__(self) -> None:
        for name in ("steps", "horizons", "windows"):
            given = getattr(self, name)
            if isinstance(given, tuple) and len(given) != len(self.blocks):
                raise CombinationError(
                    f"boost.{name} = {list(given)} has {counted(len(given), 'number')}, and blocks = "
                    f"{list(self.blocks)}: one for each is needed.",
                    fix=f"{name} = {[given[min(i, len(given) - 1)] for i in range(len(self.blocks))]}",
                )

    @property
    def per_class(self) -> int:
        """Images per class of the whole set."""
        return sum(self.blocks)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Images per class after each stage."""
        return tuple(sum(self.blocks[: i + 1]) for i in range(len(self.blocks)))

    def stages(self, outer_steps: int, truncation: Any) -> tuple[Stage, ...]:
        """The stages, one a block.

        Args:
            outer_steps: of a stage, where the schedule has no `steps`.
            truncation: the policy that `horizons` and `windows` change.

        Raises:
            CombinationError: the policy has no horizon or window to change, or the two do not go together.
        """
        given, blocks = outer_steps if self.steps is None else self.steps, tuple(self.blocks)
        steps = (given,) * len(blocks) if isinstance(given, int) else tuple(given)
        return tuple(
            Stage(i, blocks[: i + 1], steps[i], self._policy(truncation, i), (*[float(self.old_step_scale)] * i, 1.0))
            for i in range(len(blocks))
        )

    def _policy(self, truncation: Any, index: int) -> Any:
        changes = {field: given[index] for field, given in (("horizon", self.horizons), ("window", self.windows)) if given is not None}
        known = [field.name for field in attrs.fields(type(truncation))] if attrs.has(type(truncation)) else []
        lacking = [name for name in changes if name not in known]
        if lacking:
            raise CombinationError(
                f"boost.{lacking[0]}s = {list(getattr(self, lacking[0] + 's'))} sets the {lacking[0]} of the truncation policy by stage, "
                f"and {type(truncation).__name__} has none."
            )
        return attrs.evolve(truncation, **changes) if changes else truncation


def require_minibatch(stage: Stage, schedule: BoostSchedule | None, learner: Any) -> None:
    """Check that the learner's minibatch can be drawn from the blocks.

    Raises:
        CombinationError: naming both sides.
    """
    batch = learner.batch_per_class
    boosted = schedule is not None
    if batch is not None and batch > stage.per_class:
        whole = "boost.blocks add up to" if boosted else "images.per_class ="
        raise CombinationError(
            f"learner.batch_per_class = {batch}, and {whole} {stage.per_class}.",
            fix=f"batch_per_class = {stage.per_class}",
        )
    if schedule is None or schedule.minibatch == "union":
        return
    if learner.classes_per_step is not None:
        raise CombinationError(
            'boost.minibatch = "each block" draws from every block of every class, and '
            f"learner.classes_per_step = {learner.classes_per_step} leaves classes out.",
            fix='minibatch = "union"',
        )
    if batch is not None and batch > min(schedule.blocks):
        raise CombinationError(
            f'boost.minibatch = "each block" draws learner.batch_per_class = {batch} rows of a class from every block, '
            f"and the smallest of {list(schedule.blocks)} has {min(schedule.blocks)}.",
            fix=f"batch_per_class = {min(schedule.blocks)}",
        )


def sampling_groups(stage: Stage, schedule: BoostSchedule | None, classes: int) -> Tensor:
    """int64 (N,): what a minibatch draws the same number of rows from: each class, or each class of each block."""
    own = stage.classes(classes)
    return own if schedule is None or schedule.minibatch == "union" else own + classes * stage.block(classes)


def with_batch_that_fits(learner: Any, rows: Sequence[int]) -> Any:
    """The learner with a `batch_per_class` that the smallest of these numbers of rows can serve."""
    batch = learner.batch_per_class
    return learner if batch is None or batch <= min(rows) else attrs.evolve(learner, batch_per_class=min(rows))
