"""What a run may not do: take more memory than there is, or lose its way."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import attrs
import numpy as np

from distilkit.distiller import Distiller
from distilkit.errors import Change, GradientError, ResourceError
from distilkit.runs.estimate import advice_for, from_shapes
from distilkit.truncation import StepInfo

HOPELESS = 8  # times the memory that there is; an estimate by shapes is right to a factor of two
SPAN = 50  # outer steps over which a loss is looked at

logger = logging.getLogger("distilkit")


def require_bounded(infos: Sequence[StepInfo], distiller: Distiller) -> None:
    """End a run whose outer loss has left its own history, which no clip will bring back.

    Raises:
        GradientError: the median of the last 50 losses is more than 10 times that of the first 50 of the stage.
    """
    losses = [info.outer_loss for info in infos if info.stage == infos[-1].stage] if infos and len(infos) % SPAN == 0 else []
    if len(losses) < 2 * SPAN:
        return
    first, last = float(np.median(losses[:SPAN])), float(np.median(losses[-SPAN:]))
    if last > 10 * first:
        raise GradientError(
            f"The run has diverged: the median of the last {SPAN} outer losses is {last:.3g}, and was {first:.3g} at first. What was done "
            "until then is stored; where there was a look at validation, so is the best set.",
            changes=[Change("outer.optimizer.lr", float(f"{distiller.outer.optimizer.lr / 10:g}"))],
        )


def out_of_memory(distiller: Distiller) -> ResourceError:
    """What to say where memory ran out: what a plan would change."""
    changes = [change for _, change in advice_for(distiller, attrs.evolve(from_shapes(distiller), available=0))]
    return ResourceError("There was not enough memory. What was done until then is stored.", changes=changes)


def require_memory(distiller: Distiller) -> None:
    """Say what the run will take, by shapes alone, and what to change if it may not fit; refuse what cannot."""
    draft = from_shapes(distiller)
    what = f"memory: about {draft.peak / 2**30:.1f} GiB at the peak, of {draft.available / 2**30:.1f} GiB"
    if not draft.by_shapes:
        logger.info("memory: not known, since the network cannot be recorded; distilkit plan measures it")
    elif draft.fits:
        logger.info(what)
    elif draft.peak > HOPELESS * draft.available:
        changes = [change for _, change in draft.advice]
        raise ResourceError(f"{what[0].upper()}{what[1:]}: this cannot be done here.", changes=changes)
    else:
        logger.warning("%s: it may not fit; a plan (`distilkit plan`, `dk.plan`) measures it and says what to change", what)
