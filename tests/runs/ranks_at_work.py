"""Run by several processes in test_ranks.py: what the processes of a run tell each other, seen from inside of one."""

import sys

import torch

from distilkit import ranks
from distilkit.errors import Change, CombinationError


def refused(work):
    """What it raises."""
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def fail():
    raise CombinationError("It cannot be.", changes=[Change("seed", 1)])


def main():
    """All of it."""
    with ranks.joined(torch.device("cpu")) as world:
        rank, size = world.rank, world.size
        assert ranks.current() is world
        assert size == int(sys.argv[1])
        assert world.several

        # Objects and numbers, in the order of the processes.
        assert world.exchange({"of": rank}) == [{"of": i} for i in range(size)]
        rows = torch.arange(6.0).reshape(2, 3) + 100 * rank
        same = torch.linspace(0, 1, 3000)
        told = world.exchange_rows(rows, ranks.fingerprint([same, rows.double() * 0]))
        assert torch.equal(told, torch.stack([torch.arange(6.0).reshape(2, 3) + 100 * i for i in range(size)]))

        # A set that is NaN everywhere is alike; one with a pixel that differs in its last bit is not.
        world.exchange_rows(rows, ranks.fingerprint([same * float("nan")]))
        apart = same.clone()
        apart[1234] = apart[1234].nextafter(torch.tensor(2.0)) if rank else apart[1234]
        assert "differ in their last bits" in str(refused(lambda: world.exchange_rows(rows, ranks.fingerprint([apart]))))

        # One of them is asked to stop: all know it after the next exchange, of either kind.
        assert not world.stopping
        world.asked = lambda: rank == size - 1
        assert not world.stopping
        world.exchange(None)
        assert world.stopping
        world.asked = lambda: False
        world.exchange_rows(rows, ranks.fingerprint([same]))
        assert not world.stopping

        # The first does it; all have it, or its error with what to type instead.
        done = []
        assert world.first_does(lambda: done.append(rank) or "made") == "made"
        assert done == ([0] if rank == 0 else [])
        error = refused(lambda: world.first_does(fail))
        assert isinstance(error, CombinationError)
        assert error.changes == (Change("seed", 1),)

        # One after the other on a machine; where one fails, so do all.
        order = []
        world.in_turn(lambda: order.append(world.exchange))  # each does it once
        assert len(order) == 1
        assert "It cannot be." in str(refused(lambda: world.in_turn(fail if rank == size - 1 else list)))

        # Teams that follow each other.
        told = world.exchange_in_team(torch.full((1, 2), float(rank)), 2)
        assert told[:, 0, 0].tolist() == [rank // 2 * 2, rank // 2 * 2 + 1]

    assert not ranks.current().several
    sys.stdout.write(f"rank {rank} is through\n")


if __name__ == "__main__":
    main()
