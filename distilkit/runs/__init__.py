"""A pipeline and a folder: what `dk.run`, `dk.plan` and `dk.evaluate` do, each in the module of its name."""
