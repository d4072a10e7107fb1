"""Scores of training sets: networks are trained on one and measured, and of their numbers of training steps one is selected.

`score` selects a number on the validation split and tests there, and can be stopped between two networks; `score_sets` does the same for
many sets at once. Where several processes take a run, each trains some of the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs
import numpy as np
import torch

from distilkit import ranks
from distilkit.boosting import with_batch_that_fits
from distilkit.data.bundle import DataBundle
from distilkit.evaluation.measuring import Table, Trained, selection_split, streams, trained
from distilkit.evaluation.protocol import Evaluation
from distilkit.evaluation.training import TrainingSet, groups, mean_or_zero
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.unroll.execution import ProgramCache

KEPT = 2**30  # bytes of parameters that are kept from the training to the test; networks beyond that are trained once more


@attrs.frozen
class Score:
    """Accuracy of one training set.

    Args:
        validation: fractions (lengths, seeds) on what choices are made on: after each number of training steps, for each network; NaN for
            one that diverged, which counts as never right where a choice is made.
        test: fractions (seeds,) after the steps that were best there; empty when the test split was not used.
        steps: that number of training steps.
    """

    validation: Table = attrs.field(eq=attrs.cmp_using(np.array_equal))
    test: Table = attrs.field(eq=attrs.cmp_using(np.array_equal))
    steps: int

    @property
    def selected(self) -> Table:
        """Accuracy by seed at the best number of steps, on what choices are made on."""
        best: Table = self.validation[int(mean_or_zero(self.validation).argmax())]
        return best


@attrs.define(eq=False)
class PartialScore:
    """What is there of a score that is not complete, by groups of networks that are trained side by side: large ones are each a group.

    Args:
        validation: of each group that was trained, fractions (lengths, networks).
        test: of each group that was tested, fractions (networks,).
    """

    validation: list[Table] = attrs.Factory(list)
    test: list[Table] = attrs.Factory(list)


def _go_on() -> None:
    """Do nothing between two groups of networks."""


def score(
    learner: Learner,
    training: TrainingSet,
    data: DataBundle,
    evaluation: Evaluation,
    stream: Stream,
    *,
    test: bool,
    programs: ProgramCache | None = None,
    partial: PartialScore | None = None,
    between: Callable[[], None] = _go_on,
) -> Score:
    """Train networks on a training set, select the number of training steps, and test there.

    Args:
        learner: bound to the data.
        training: what to train on: one set for all networks, or a draw of it for each.
        data: its validation split selects the number of steps (or a part of the training images, where there is no such
            split); its test split is used only if `test`, or if the protocol is the paper's.
        evaluation: the protocol.
        stream: of the evaluation; network i takes `stream.fold(i)`.
        test: measure on the test split, at the selected number of steps.
        programs: where what is built is kept, such as `Distiller.programs`; None builds anew.
        partial: what an earlier call had found; filled as this one goes on.
        between: called after each group of networks, or one of each process; may raise, to stop.
    """
    return _scores(learner, training, 1, data, evaluation, stream, test, programs, partial or PartialScore(), between)[0]


def score_sets(
    learner: Learner,
    sets: Sequence[TrainingSet],
    data: DataBundle,
    evaluation: Evaluation,
    stream: Stream,
    *,
    programs: ProgramCache | None = None,
) -> list[Score]:
    """The score of each of many sets of the same size and classes, whose networks are trained side by side.

    Network i of every set takes `stream.fold(i)`, so two sets differ by nothing but their rows.

    Args:
        learner: bound to the data; a larger `batch_per_class` than the sets can serve is made smaller.
        sets: each one set, with images (N, ...); all have the learning rate and the label space of the first.
        data: as for `score`; the test split is used once for each set.
        evaluation: the protocol.
        stream: of the evaluation.
        programs: as for `score`.
    """
    first, seeds = sets[0], evaluation.seeds
    counts = first.classes.bincount()
    stacked = attrs.evolve(
        first,
        images=torch.stack([s.images for s in sets]).repeat_interleave(seeds, 0),
        labels=torch.stack([s.labels for s in sets]).repeat_interleave(seeds, 0),
    )
    learner = with_batch_that_fits(learner, counts[counts > 0].tolist())
    return _scores(learner, stacked, len(sets), data, evaluation, stream, True, programs, PartialScore(), _go_on)


def _scores(
    learner: Learner,
    training: TrainingSet,
    sets: int,
    data: DataBundle,
    evaluation: Evaluation,
    stream: Stream,
    test: bool,
    programs: ProgramCache | None,
    partial: PartialScore,
    between: Callable[[], None],
) -> list[Score]:
    """Of so many sets, whose networks follow each other. Each group of networks is trained to its end before the next one begins."""
    seeds, choosing = evaluation.seeds, data.test if evaluation.select == "paper" else selection_split(data)
    own, programs = streams(evaluation, stream) * sets, programs or ProgramCache()
    known = [row.shape[1] for row in partial.validation]
    # Which are trained together depends on the memory that is free: of several processes the first tells.
    parts = ranks.current().first_does(lambda: _groups(learner, training, evaluation, own, known))
    kept: dict[int, list[Trained]] = {}  # of a group after each number of steps

    def group(i: int) -> Iterator[Trained]:
        some = own[parts[i]]
        return trained(learner, training.part(parts[i]), evaluation, some, programs, together=len(some), networks=len(own))

    room = KEPT if test and choosing is not data.test else 0

    def validated(i: int) -> Table:
        nonlocal room
        rows: list[Table] = []
        for networks in group(i):
            if not rows and room >= (size := networks.params.nbytes * len(evaluation.steps)):
                kept[i], room = [], room - size
            if i in kept:
                kept[i].append(networks)
            rows.append(networks.accuracy(choosing))
        return np.stack(rows)

    _fill(partial.validation, len(parts), validated, between)
    tables = np.concatenate(partial.validation, 1).reshape(len(evaluation.steps), sets, seeds)
    picked = mean_or_zero(tables).argmax(0)
    if not test:
        tested = np.zeros((sets, 0))
    elif choosing is data.test:
        tested = tables[picked, np.arange(sets)]
    else:
        steps = np.asarray(evaluation.steps)[picked].repeat(seeds)  # of each network

        def measured(i: int) -> Table:
            after = kept.pop(i, None) or group(i)  # trained again, to the same bits
            return _after(steps[parts[i]], after).accuracy(data.test)

        _fill(partial.test, len(parts), measured, between)
        tested = np.concatenate(partial.test).reshape(sets, seeds)
    return [Score(tables[:, i], tested[i], evaluation.steps[picked[i]]) for i in range(sets)]


def _fill(rows: list[Table], count: int, work: Callable[[int], Table], between: Callable[[], None]) -> None:
    """Append the tables of the groups that are not there yet: of each process one at a time, in the order of the groups."""
    world = ranks.current()
    for begin in range(len(rows), count, world.size):
        mine = begin + world.rank
        rows += [found for found in world.exchange(work(mine) if mine < count else None) if found is not None]
        between()


def _groups(learner: Learner, training: TrainingSet, evaluation: Evaluation, own: Sequence[Stream], known: Sequence[int]) -> list[slice]:
    """Which networks are trained side by side: as in the groups that are known, and the others as there is room now."""
    ends = np.cumsum([0, *known]).tolist()
    rest = groups(*evaluation.trainer(learner, training), own[ends[-1] :]) if ends[-1] < len(own) else []
    return [*map(slice, ends, ends[1:]), *(slice(part.start + ends[-1], part.stop + ends[-1]) for part in rest)]


def kept_bytes(learner: Learner, evaluation: Evaluation, networks: int) -> int:
    """Of parameters that wait for the test of a set, at most, where a process judges with so many networks."""
    size = networks * len(evaluation.steps) * learner.layout.size * torch.float32.itemsize
    return 0 if evaluation.select == "paper" else min(KEPT, size)


def _after(steps: Table, networks: Iterable[Trained]) -> Trained:
    """Each network after its own number of steps."""
    chosen: Trained | None = None
    for found in networks:
        mine = torch.from_numpy(steps == found.steps).to(found.params.device)[:, None]
        chosen = found if chosen is None else found._replace(params=torch.where(mine, found.params, chosen.params))
        if found.steps >= steps.max():
            return chosen
    raise ValueError(f"no networks after {steps.max()} steps")
