"""Building blocks: random streams, flat parameters, optimisers, losses, the two adjoints."""
