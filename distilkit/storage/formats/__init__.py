"""Import and export of distilled sets in the formats of others, and in one file of our own.

`read` and `write` work by the table `FORMATS`; a new format is a module with `matches`, `read` and `write`, and a line there. What
a file does not say (label space, preprocessing, image shape) must be given, and the error names the option. No file is unpickled:
`.pt` files are read with `weights_only=True`.
"""

from distilkit.storage.formats.table import FORMATS, Format, read, write

__all__ = ["FORMATS", "Format", "read", "write"]
