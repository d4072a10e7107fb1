"""The command line: `app` has the commands, and the other modules what they print; torch is loaded by the commands that need it."""

from distilkit.cli.app import main

__all__ = ["main"]
