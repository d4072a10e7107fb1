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
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from distilkit.errors import Change, CombinationError, DistilkitError, ResourceError

Result = TypeVar("Result")

_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name since torch 2.14

MEETING = timedelta(minutes=10)  # until all processes have started
# Then each waits for the slowest, which may load data or judge a set for hours. One that is lost is seen by its connection, or by torchrun.
PATIENCE = timedelta(days=2)


class LostError(ResourceError):
    """Another process of the run has ended, or is not one with this one any more."""


class Shares(NamedTuple):
    """Who takes what of an outer step, of `count` networks.

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

    Attributes:
        joined: whether this is a run of several, be it of one process.
        group: torch's process group of them all.
        asked: whether to stop, as this process has it; `stopping` is what all are told.

    >>> alone = Ranks()
    >>> alone.first, alone.exchange("found"), alone.shares(4, 1)
    (True, ['found'], Shares(total=4, teams=1, members=1))
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, *, joined: bool = False, group: Any = None) -> None:
        self.rank, self.size, self.local_rank, self.joined, self._group = rank, size, local_rank, joined, group
        self.asked: Callable[[], bool] = bool  # which is False
        self._told = False
        self._groups: dict[int, list[Any]] = {}

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @property
    def stopping(self) -> bool:
        """Whether to stop, the same in every process: where there are several, whether one was asked before the last exchange."""
        return self._told if self.several else self.asked()

    def shares(self, count: int, parts: int) -> Shares:
        """Share out the networks of an outer step, and the parts that the real batch of each is taken in.

        Args:
            count: networks of an outer step.
            parts: of the real batch; 1 where they cannot be shared.

        Raises:
            CombinationError: a process would have nothing to do.
        """
        members = max(1, self.size // count)
        if self.size > count and (self.size % count or members > parts):
            changes = [Change("unroller.networks_per_step", self.size)]
            raise CombinationError(
                f"{self.size} processes are too many for networks_per_step = {count} and micro_batches = {parts}: some would have "
                "nothing to do. Numbers of the spec are those of all processes together.",
                changes=changes if self.size % count else [*changes, Change("unroller.micro_batches", members)],
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
            known: a number () that all must have alike, as a sign that they are still one; bits count.

        Raises:
            LostError: they are not.
        """
        if not self.several:
            return rows[None]
        asked = torch.tensor([float(self.asked())], dtype=rows.dtype, device=rows.device)
        mine = torch.cat([rows.flatten(), asked, known.to(rows).reshape(1)])
        told = mine.new_empty(self.size, len(mine))
        with _connected():
            _gather(told.view(-1), mine, group=self._group)
        asking, knowing = told[:, -2:].T.tolist()
        self._told = any(asking)
        if any(one != knowing[0] for one in knowing) and not all(one != one for one in knowing):
            raise LostError(
                "The processes of this run hold sets that differ in their last bits, so that they are no longer one run: their machines "
                "round otherwise. Take machines with the same processors or GPUs, and the same torch."
            )
        return told[:, :-2].view(self.size, *rows.shape)

    def exchange_in_team(self, rows: Tensor, members: int) -> Tensor:
        """The same among the processes that take one network together: (members, K, P)."""
        told = rows.new_empty(members * len(rows), *rows.shape[1:])
        with _connected():
            _gather(told, rows, group=self._teams(members)[self.rank // members])
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

    def _teams(self, members: int) -> list[Any]:
        """The groups of so many processes each that follow each other. All make all of them, as torch has it."""
        if members not in self._groups:
            self._groups[members] = [
                dist.new_group(list(range(begin, begin + members)), timeout=PATIENCE) for begin in range(0, self.size, members)
            ]
        return self._groups[members]


_current = Ranks()


def current() -> Ranks:
    """The processes of the run that goes on, or this one alone."""
    return _current


@contextmanager
def joined(device: torch.device) -> Generator[Ranks, None, None]:
    """Work together with the other processes that torchrun has started, or that are in the process group which is there.

    Args:
        device: what the work is done on; on GPUs, each process of a machine takes one of its own.

    Raises:
        CombinationError: a machine has fewer GPUs than processes.
    """
    global _current
    before = _current
    if before.joined or not dist.is_available() or not (dist.is_initialized() or dist.is_torchelastic_launched()):
        yield before
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise CombinationError(
                f"Process {local} of this machine has no GPU: there are {torch.cuda.device_count()}.",
                fix=f"torchrun --nproc-per-node {torch.cuda.device_count()}",
            )
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        store, rank, size = next(rendezvous("env://", timeout=MEETING))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_of_this_start(store, rank, size), rank=rank, world_size=size, timeout=MEETING)
        atexit.register(_leave)
    group = dist.new_group(timeout=PATIENCE)
    _current = Ranks(dist.get_rank(), dist.get_world_size(), local, joined=True, group=group)
    try:
        yield _current
    finally:
        _current = before


def _of_this_start(store: Any, rank: int, size: int) -> Any:
    """A part of torchrun's store that the processes of this start have to themselves.

    torchrun keeps one store over its restarts (seen with 2.14), and gives the processes of a new start nothing to tell them apart by; they
    would take the addresses that lost ones have left there for those of each other. So the first names a start, the others answer with a
    name of their own, and it tells them all whom it has heard of: an answer of an earlier start holds other names.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("distilkit/start", own)
        told = [own, *(store.get(f"distilkit/{own}/{other}").decode() for other in range(1, size))]
        store.set(f"distilkit/{own}/all", " ".join(told))
        return PrefixStore(f"distilkit/{own}", store)
    while True:
        start = store.get("distilkit/start").decode()
        store.set(f"distilkit/{start}/{rank}", own)
        try:
            store.wait([f"distilkit/{start}/all"], timedelta(seconds=1))
        except dist.DistStoreError:  # not yet, or never: that start is over
            continue
        if store.get(f"distilkit/{start}/all").decode().split()[rank] == own:
            return PrefixStore(f"distilkit/{start}", store)
        time.sleep(0.1)


def in_order(told: Tensor, shares: Shares) -> list[Tensor]:
    """The rows of networks 0, 1, ... among those that the processes have told, (size, K, P)."""
    return [told[shares.place(network)] for network in range(shares.total)]


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
    except RuntimeError as error:  # of which torch's errors of distributed work are
        _broken = True
        raise LostError(f"Another process of this run has ended, or cannot be reached: {str(error).splitlines()[0][:200]}") from error


def _leave() -> None:
    """Leave the process group, unless the others are gone, for which it would wait."""
    if dist.is_initialized() and not _broken:
        dist.destroy_process_group()
