"""What "auto" stands for: how inner steps are run, in which precision and layout, one network at a time or side by side."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from math import inf
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from distilkit import process
from distilkit.errors import Change, CombinationError, counted
from distilkit.functional.streams import Stream
from distilkit.learner import Learner, Numerics
from distilkit.programs.programs import CAPTURED, Programs
from distilkit.unroll import own_kernels, precision as precisions

# Floating point operations of one forward pass of one network on an inner batch from which on compiling, which costs seconds to a
# minute, is soon won back: it saves a third of every step of the standard ConvNet-3.
WORTH_COMPILING = 1e9
MOST_CAPTURED = 4  # learners whose CUDA graphs are kept: of inner steps, of networks that judge a set, and of their accuracy
WORTH_BUILDING = 5e12  # operations of a whole training, forward passes alone, from which on a minute of compiling is won back
WORTH_RECORDING = 30  # steps from which on recording one, which takes as long as about ten, is won back

logger = logging.getLogger("distilkit")

Precision = Literal["float32", "tf32", "bfloat16"]
AnyPrecision = Literal["auto", "float32", "tf32", "bfloat16"]
Compile = Literal["auto", "eager", "trace", "inductor", "cudagraph", "inductor-cudagraph"]
Switch = Literal["auto", "on", "off"]
Kernels = Literal["auto", "torch", "triton"]


class Execution(NamedTuple):
    """How the functions of a step are run.

    Args:
        kind: one of `distilkit.programs.programs.EXECUTIONS`.
        channels_last: whether images lie in memory as (N, H, W, C).
        side_by_side: whether the networks of an outer step are stacked, or taken one after the other.
        precision: of the arithmetic inside of the network: "float32", "tf32" or "bfloat16".
        why: the reason, for people.
        micro_batch: images of an inner step that are taken at one time, at most; None takes them together.
        kernels: whether norms, ReLU and pooling are taken by kernels of our own (CUDA only).
    """

    kind: str
    channels_last: bool
    side_by_side: bool
    precision: str
    why: str
    micro_batch: int | None = None
    kernels: bool = False

    @property
    def numerics(self) -> Numerics:
        """Of a forward pass."""
        return Numerics(torch.bfloat16 if self.precision == "bfloat16" else None, self.channels_last, self.kernels)

    def __str__(self) -> str:
        parts = [_WORDS[self.kind]]
        parts += [self.precision] if self.precision != "float32" else []
        parts += ["channels last"] if self.channels_last else []
        parts += ["networks side by side"] if self.side_by_side else []
        parts += [f"at most {counted(self.micro_batch, 'image')} at a time"] if self.micro_batch else []
        parts += ["kernels in Triton"] if self.kernels else []
        return f"{', '.join(parts)} ({self.why})"


_WORDS = {
    "eager": "operations as they are",
    "trace": "recorded operations",
    "inductor": "recorded operations, compiled",
    "cudagraph": "recorded operations, as CUDA graphs",
    "inductor-cudagraph": "recorded operations, compiled, as CUDA graphs",
}


def require_values(*parts: Any) -> None:
    """Refuse a learner or an unroller that programs cannot be kept for.

    Raises:
        CombinationError: a part of one is not a value.
    """
    try:
        hash(parts)
    except TypeError as error:
        raise CombinationError(
            f"The learner or the unroller holds a part that is not a value ({error}): network, optimizer, loss, augment and adjoint "
            "must be hashable, and must not change once they are made.",
            fix="@attrs.frozen  # above the class",
        ) from error


@lru_cache(maxsize=64)
def choose(
    learner: Learner,
    compile: str,
    channels_last: str,
    side_by_side: str,
    precision: str,
    networks: int,
    shape: tuple[int, ...],
    device: torch.device,
    calls: float = inf,
    kernels: str = "torch",
) -> Execution:
    """Pick how to run, where the user left it open ("auto").

    Args:
        learner: bound.
        compile: "auto", or one of `distilkit.programs.programs.EXECUTIONS`.
        channels_last: "auto", "on" or "off".
        side_by_side: "auto", "on" or "off".
        precision: "auto", "float32", "tf32" or "bfloat16".
        networks: networks in an outer step.
        shape: of the images of an inner step, (B, ...). What is picked is for those that are taken at one time.
        device: where the work is done.
        calls: how many steps there will be; building programs is not worth a few.
        kernels: "auto", "torch" or "triton".

    Raises:
        CombinationError: CUDA graphs without a GPU; a layout asked for that networks side by side cannot have; networks side by side that
            take their images in parts; kernels of our own where there are none.
    """
    if (some := learner.at_a_time(shape[0])) is not None:
        if side_by_side == "on" and networks > 1:
            raise CombinationError(
                f"learner.micro_batch = {learner.micro_batch} takes the {shape[0]} images of an inner step in parts, and side_by_side = "
                f'"on" stacks {networks} networks, which take them together.',
                changes=[Change("unroller.side_by_side", "off")],
            )
        part = choose(learner, compile, channels_last, "off", precision, networks, (some, *shape[1:]), device, calls, kernels)
        return part._replace(micro_batch=some)
    if channels_last == "on" and side_by_side == "on" and networks > 1:
        raise CombinationError(
            'channels_last = "on" and side_by_side = "on" do not go together: stacked networks have no such layout.',
            fix='channels_last = "auto"',
        )
    if compile in CAPTURED and device.type != "cuda":
        raise CombinationError(f'compile = "{compile}" needs a GPU, and the work is on {device}.', fix='compile = "auto"')
    open_ = compile == "auto" or (networks > 1 and side_by_side == "auto")
    work = operations(learner, shape, device) if open_ else 0.0
    kind, why = compile, "as asked for"
    if compile == "eager":
        kind = "eager"
    elif compile == "auto" and calls < WORTH_RECORDING:
        kind, why = "eager", f"too few steps to record: {calls:.0f}"
    elif compile == "auto":
        kind, why = _compiling(work, calls, device)
    small = work <= process.SMALL_WORK.get(device.type, 0) and networks * learner.layout.size <= process.STACKED.get(device.type, 2**62)
    together = networks > 1 and (side_by_side == "on" or (side_by_side == "auto" and small and channels_last != "on"))
    # Recorded operations run as they are would copy to and fro between layouts; a compiler does not.
    last = channels_last == "on" or (channels_last == "auto" and kind == "inductor" and device.type == "cpu" and not together)
    last = last and len(shape) == 4
    if precision == "auto":
        found, reason = precisions.faster(kind, last, device)
        precision, why = next(iter(found), "float32"), f"{why}; {reason}"
    elif precision == "bfloat16" and device.type == "cpu" and len(shape) == 4:
        precisions.say_if_slow(last, device)
    ours, reason = own_kernels.pick(learner, kernels, kind, precision, shape, device)
    return Execution(kind, last, together, precision, f"{why}; {reason}" if reason else why, kernels=ours)


def decided(found: Execution, device: torch.device, gradient: Callable[[str], Tensor]) -> Execution:
    """An execution that `choose` has picked for `precision = "auto"`, once its meta-gradient was looked at, where it is: on a GPU.

    Args:
        found: the pick, by the clock.
        device: where the work is done.
        gradient: a meta-gradient in a precision, as for `distilkit.unroll.precision.pick`.
    """
    if device.type not in precisions.COMPARED or found.precision == "float32":
        return found
    taken, why = precisions.pick(precisions.faster(found.kind, found.channels_last, device)[0], gradient)
    return found._replace(precision=taken, why=why)


def _compiling(work: float, calls: float, device: torch.device) -> tuple[str, str]:
    """What `compile = "auto"` stands for where steps are worth recording, and why.

    On a GPU compiling is taken to be worth it from the same work on as on a CPU: an estimate, not measured.
    """
    large, on_gpu = work >= WORTH_COMPILING, device.type == "cuda"
    there, name = (own_kernels.has_triton(), "Triton") if on_gpu else (compiler_here() is not None, "C++ compiler")
    fused = large and work * calls >= WORTH_BUILDING and there
    why = f"{'on a GPU, ' if on_gpu else ''}a forward pass takes {_flop(work)}"
    why += f", but there is no {name}" if large and not there else ""
    if on_gpu:
        return "inductor-cudagraph" if fused else "cudagraph", why
    return "inductor" if fused else "trace", why


def _flop(work: float) -> str:
    unit, name = next(((u, n) for u, n in ((1e9, "GFLOP"), (1e6, "MFLOP")) if work >= u), (1e3, "kFLOP"))
    return f"{work / unit:.2g} {name}" if work < 100 * unit else f"{work / unit:.0f} {name}"


def operations(learner: Learner, shape: tuple[int, ...], device: torch.device | str = "cpu") -> float:
    """Floating point operations of one forward pass of one network on images of a shape (B, ...): products and convolutions."""
    some = min(2, shape[0])  # one image is none to a network with batch norm
    params = learner.init(Stream(0, ("work",)), device=device).params
    with torch.no_grad():
        work, _ = process.count_operations(lambda: learner.logits(params, torch.zeros(some, *shape[1:], device=device)))
    return work * shape[0] / some


def compiler_here() -> str | None:
    """A C++ compiler that torch.compile will find."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


class ProgramCache:
    """The programs of a pipeline, by how they run and for which learner: built once, and gone with their owner.

    A `Distiller` has one, for inner steps and for the networks that judge its set, whose training step is the same.
    Learners are values, so equal ones share programs. CUDA graphs hold inputs, results and scratch of their own, so that only those of the
    last few learners are kept.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Programs] = {}
        self._fallbacks: dict[tuple[Any, ...], dict[str, str]] = {}
        self._said: set[Execution] = set()

    def say(self, execution: Execution) -> None:
        """Log how inner steps are run: once for each way."""
        if execution not in self._said:
            self._said.add(execution)
            logger.info("inner steps: %s", execution)

    def of(self, execution: Execution, learner: Learner, adjoint: Any = None) -> Programs:
        """The programs of one learner.

        Args:
            execution: how they run.
            learner: bound.
            adjoint: one whose programs have names that do not tell its parameters, as a user's own may.
        """
        key = self._key(execution, learner, adjoint)
        programs = self._made.pop(key, None)
        if programs is None:
            programs = Programs(execution.kind, logger.info, logger.warning)
            programs.fallbacks = self.fallbacks(execution, learner, adjoint)
        self._made[key] = programs  # the last that was asked for comes last
        captured = [other for other, one in self._made.items() if one.execution in CAPTURED]
        for other in captured[: max(0, len(captured) - MOST_CAPTURED)]:
            del self._made[other]
        return programs

    def fallbacks(self, execution: Execution, learner: Learner, adjoint: Any = None) -> dict[str, str]:
        """What has fallen back of the programs of a learner, also of those that are no longer there: see `Programs.fallbacks`."""
        return self._fallbacks.setdefault(self._key(execution, learner, adjoint), {})

    @staticmethod
    def _key(execution: Execution, learner: Learner, adjoint: Any) -> tuple[Any, ...]:
        # What is captured or compiled holds the routines that were asked for then.
        return execution._replace(why=""), learner, adjoint, torch.are_deterministic_algorithms_enabled()

    def drop_captured(self) -> None:
        """Drop all programs that are CUDA graphs, with the memory that is theirs alone; what is called again is built again."""
        self._made = {key: one for key, one in self._made.items() if one.execution not in CAPTURED}
