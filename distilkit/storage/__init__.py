"""What a run leaves on disk: results as a Zarr store that xarray opens.

`open` gives all that a run measured and made as an xarray tree, without loading torch; `load` gives its distilled set, bit for
bit; `write` puts a tree on disk whole or not at all. `layout` builds the tree from plain arrays, and the public format is written
down there. `distilled_group`, `to_arrays` and `from_group` turn a distilled set into a group of it and back. `spread` is the one
meaning of ±. `checkpoint` saves the state of a loop and finds it again, that of `distilkit run` or of your own.
"""

from distilkit.storage import checkpoint, layout
from distilkit.storage.integrity import verify
from distilkit.storage.layout import FORMAT_VERSION
from distilkit.storage.sets import SetArrays, distilled_group, from_group, to_arrays
from distilkit.storage.store import holds_results, is_run, is_set, load, open, require_writable, says_all, write

__all__ = [
    "FORMAT_VERSION",
    "SetArrays",
    "checkpoint",
    "distilled_group",
    "from_group",
    "holds_results",
    "is_run",
    "is_set",
    "layout",
    "load",
    "open",
    "require_writable",
    "says_all",
    "to_arrays",
    "verify",
    "write",
]
