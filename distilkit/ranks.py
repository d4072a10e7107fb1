"""The processes that take one run together: those of torchrun, on one machine or on several.

Every process does the whole of a run alike, but for what is shared out: networks of an outer step, parts of the real batch, networks that
are judged. What each has found goes to all (`exchange`), and is added up in the order of the networks, never in that of the processes, so
that any number of them gives the same bits on the same hardware. Only the first writes and speaks.

Outside of `joined` there is one process, and nothing here costs anything.
"""

from __future__ import annotations

import atexit
import os
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from distilkit import process
from distilkit.errors import Change, CombinationError, DistilkitError, ResourceError

Result = TypeVar("Result")

MEETING = timedelta(minutes=10)  # until all processes have started
# Then each waits for the slowest, which may load data or judge a set for hours. One that is lost is seen by its connection, or by torchrun.
PATIENCE = timedelta(days=2)
_HALF = 20  # bits of a fingerprint that a float32 holds for certain


class LostError(ResourceError):
    """Another process of the run has ended, or is not one with this one any more."""


class Shares(NamedTuple):
    """Who takes what of an outer step, of `total` networks.

    Each of them is taken by `members` processes, which share the parts of the real batch; there are `teams` of such.
    """

    total: int
    teams: int
    members: int

    def networks(self, rank: int) -> range:
        """The networks that a process takes."""
        return range(rank // self.members, self.total, self.teams)

    def place(self, network: int) -> tuple[int, int]:
        """The process that tells of a network, and the how-manieth of its networks that is."""
        return network % self.teams * self.members, network // self.teams


class Ranks:
    """One of the processes of a run, and its way to the others.

    Args:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number on its machine.
        group: torch's process group of them all; None where this is the only one, and there is no run of several.

    Attributes:
        asked: whether to stop, as this process has it; `stopping` is what all are told.

    >>> alone = Ranks()
    >>> alone.first, alone.exchange("found"), alone.shares(4, 1)
    (True, ['found'], Shares(total=4, teams=1, members=1))
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, group: Any = None) -> None:
        self.rank, self.size, self.local_rank, self._group = rank, size, local_rank, group
        self.asked: Callable[[], bool] = bool  # which is False
        self._told = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @property
    def joined(self) -> bool:
        """Whether this is a run of several, be it of one process."""
        return self._group is not None

    @property
    def stopping(self) -> bool:
        """Whether to stop, the same in every process: where there are several, whether one was asked before the last exchange."""
        return self._told if self.several else self.asked()

    def shares(self, count: int, parts: int, *, shareable: bool = True) -> Shares:
        """Share out the networks of an outer step, and the parts that the real batch of each is taken in.

        Args:
            count: networks of an outer step.
            parts: of the real batch.
            shareable: whether several processes can take the parts of one network's.

        Raises:
            CombinationError: a process would have nothing to do.
        """
        members = max(1, self.size // count)
        if self.size > count and (self.size % count or members > (parts if shareable else 1)):
            changes = [Change("unroller.networks_per_step", self.size)]
            if shareable and self.size % count == 0:
                changes.append(Change("unroller.micro_batches", members))
            also = f" and micro_batches = {parts}" if shareable else ", whose real batch this adjoint cannot share out,"
            raise CombinationError(
                f"{self.size} processes are too many for networks_per_step = {count}{also}: some would have nothing to do. Numbers of the "
                "spec are those of all processes together.",
                changes=changes,
            )
        return Shares(count, self.size // members, members)

    def exchange(self, found: Result) -> list[Result]:
        """What each process has found, in their order. Any object that can be pickled; every process must call this."""
        if not self.several:
            return [found]
        told: list[Any] = [None] * self.size
        with _connected():
            dist.all_gather_object(told, (self.asked(), found), group=self._group)
        self._told = any(asked for asked, _ in told)
        return [each for _, each in told]

    def exchange_rows(self, rows: Tensor, known: Tensor) -> Tensor:
        """The same for numbers (K, P), the same many from each process, in one collective operation: (size, K, P).

        Args:
            rows: what this process has found.
            known: what all must have alike, as a sign that they are still one: a `fingerprint`.

        Raises:
            LostError: they have not.
        """
        if not self.several:
            return rows[None]
        halves = torch.stack([known % 2**_HALF, known // 2**_HALF % 2**_HALF]).to(rows)
        mine = torch.cat([rows.flatten(), rows.new_tensor([float(self.asked())]), halves])
        told = mine.new_empty(self.size, len(mine))
        with _connected():
            _gather(told.view(-1), mine, self._group)
        asking, *knowing = told[:, -3:].T.tolist()
        self._told = any(asking)
        if any(len({*half}) > 1 for half in knowing):
            raise LostError(
                "The processes of this run hold sets that differ in their last bits, so that they are no longer one run: their machines "
                "round otherwise. Take machines with the same processors or GPUs, and the same torch."
            )
        return told[:, :-3].view(self.size, *rows.shape)

    def exchange_in_team(self, rows: Tensor, members: int) -> Tensor:
        """The same among the processes that take one network together: (members, K, P)."""
        told = rows.new_empty(members * len(rows), *rows.shape[1:])
        with _connected():
            _gather(told, rows, _teams(self.size, members)[self.rank // members])
        return told.view(members, *rows.shape)

    def first_does(self, work: Callable[[], Result]) -> Result:
        """What the first process has made of some work; every process must call this. It must be something that can be pickled.

        Raises:
            Exception: what the work has raised, in every process.
        """
        if not self.several:
            return work()
        result, failed = _tried(work) if self.first else (None, None)
        told: list[Any] = [(result, _portable(failed))]
        with _connected():
            dist.broadcast_object_list(told, src=0, group=self._group)
        result, others = told[0]
        if others:
            raise failed or others
        return result  # type: ignore[no-any-return]

    def in_turn(self, work: Callable[[], object]) -> None:
        """Have the first process of each machine do some work, then the others: what one has downloaded, they find."""
        if not self.several:
            work()
            return
        for now in (True, False):
            failed = _tried(work)[1] if (self.local_rank == 0) is now else None
            told = self.exchange(_portable(failed))
            if any(told):
                raise failed or next(error for error in told if error)


_current = Ranks()


def current() -> Ranks:
    """The processes of the run that goes on, or this one alone."""
    return _current


@contextmanager
def alone() -> Generator[None, None, None]:
    """Do what the others know nothing of: work in here is that of this process, whole."""
    global _current
    before, _current = _current, Ranks()
    try:
        yield
    finally:
        _current = before


@contextmanager
def joined(device: torch.device) -> Generator[Ranks, None, None]:
    """Work together with the other processes that torchrun has started, or that are in the process group which is there.

    Each works with the CPU threads of OMP_NUM_THREADS, or with one, as torchrun has it for several: a sum over more is another one.

    Args:
        device: what the work is done on; on GPUs, each process of a machine that torchrun has started takes one of its own.

    Raises:
        ResourceError: a machine has fewer GPUs than processes.
        CombinationError: several processes are to take the same GPU.
    """
    global _current
    before = _current
    if before.joined or not dist.is_available() or not (dist.is_initialized() or dist.is_torchelastic_launched()):
        yield before if before.joined else Ranks()
        return
    if not dist.is_initialized():
        _meet(device)
    size = dist.get_world_size()
    if device.type == "cuda" and ":" in str(device) and size > 1:
        raise CombinationError(f'device = "{device}" would be that of all {size} processes.', changes=[Change("device", "cuda")])
    _current = Ranks(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", dist.get_rank())), _everybody())
    try:
        with process.thread_limit(int(os.environ.get("OMP_NUM_THREADS", "1"))):
            yield _current
    finally:
        _current = before


def in_order(told: Tensor, shares: Shares) -> list[Tensor]:
    """The rows of networks 0, 1, ... among those that the processes have told, (size, K, P)."""
    return [told[shares.place(network)] for network in range(shares.total)]


def fingerprint(tensors: Sequence[Tensor]) -> Tensor:
    """A whole number () that changes with any bit of float32 or float64 tensors."""
    sums = [x.detach().reshape(-1).view(torch.int32 if x.dtype == torch.float32 else torch.int64).sum(dtype=torch.int64) for x in tensors]
    return torch.stack(sums).sum()


def _meet(device: torch.device) -> None:
    """Make the process group of those that torchrun has started."""
    from torch.distributed.rendezvous import rendezvous

    if device.type == "cuda":
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= there:
            raise ResourceError(f"Process {local} of this machine has no GPU: there are {there}.", fix=f"torchrun --nproc-per-node {there}")
        torch.cuda.set_device(local)
    store, rank, size = next(rendezvous("env://", timeout=MEETING))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_of_this_start(store, rank, size), rank=rank, world_size=size, timeout=MEETING)
    atexit.register(_leave)


def _of_this_start(store: Any, rank: int, size: int) -> Any:
    """A part of torchrun's store that the processes of this start have to themselves.

    torchrun keeps one store over its restarts (seen with 2.14), and gives the processes of a new start nothing to tell them apart by; they
    would take the addresses that lost ones have left there for those of each other. So the first names a start, the others answer with a
    name of their own, and it tells them all whom it has heard of: an answer of an earlier start holds other names.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    own, until = uuid.uuid4().hex, time.monotonic() + MEETING.total_seconds()
    if rank == 0:
        store.set("distilkit/start", own)
        told = [own, *(store.get(f"distilkit/{own}/{other}").decode() for other in range(1, size))]
        store.set(f"distilkit/{own}/all", " ".join(told))
        return PrefixStore(f"distilkit/{own}", store)
    while time.monotonic() < until:
        start = store.get("distilkit/start").decode()
        store.set(f"distilkit/{start}/{rank}", own)
        try:
            store.wait([f"distilkit/{start}/all"], timedelta(seconds=1))
        except dist.DistStoreError:  # not yet, or never: that start is over
            continue
        if own in store.get(f"distilkit/{start}/all").decode().split():
            return PrefixStore(f"distilkit/{start}", store)
        time.sleep(0.1)
    raise LostError(f"The first process of this run was not heard of for {MEETING.total_seconds() / 60:.0f} minutes.")


_groups: dict[int, list[Any]] = {}  # torch's process groups of so many processes each, made once


def _everybody() -> Any:
    return _teams(dist.get_world_size(), dist.get_world_size())[0]


def _teams(size: int, members: int) -> list[Any]:
    """The groups of so many processes each that follow each other. All make all of them, as torch has it."""
    if members not in _groups:
        _groups[members] = [dist.new_group(list(range(begin, begin + members)), timeout=PATIENCE) for begin in range(0, size, members)]
    return _groups[members]


def _gather(told: Tensor, mine: Tensor, group: Any) -> None:
    name = (
        "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    )  # as it is called since torch 2.14, and before
    gather: Callable[..., Any] = getattr(dist, name)
    gather(told, mine, group=group)


def _tried(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """An error that another process can raise: what is not ours may not go through a pipe."""
    return error if error is None or isinstance(error, DistilkitError) else DistilkitError(f"{type(error).__name__}: {error}")


_broken = False


@contextmanager
def _connected() -> Generator[None, None, None]:
    """Around what needs the others."""
    global _broken
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # of this process
        raise
    except RuntimeError as error:  # of which torch's errors of distributed work are
        _broken = True
        raise LostError(f"Another process of this run has ended, or cannot be reached: {str(error).splitlines()[0][:200]}") from error


def _leave() -> None:
    """Leave the process group, unless the others are gone, for which it would wait."""
    if dist.is_initialized() and not _broken:
        dist.destroy_process_group()
