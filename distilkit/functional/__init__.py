"""Building blocks: random streams, pytrees, optimisers, schedules, losses, clipping."""
