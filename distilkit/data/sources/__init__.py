"""Data sources: frozen declarations whose `load(stream)` gives a `DataBundle`."""
