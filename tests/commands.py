"""The command line without a process of its own: the same entry point, exit code and words, and torch is imported once."""

import contextlib
import io
import sys
from typing import NamedTuple
from unittest import mock

from distilkit.cli import app, main


class Done(NamedTuple):
    """A command that has ended, as `subprocess.CompletedProcess` has it."""

    returncode: int
    stdout: str
    stderr: str


def raised(error):
    """In the place of `unexpected`."""
    raise error


def distilkit(*arguments, cwd="."):
    """Run `distilkit ARGUMENTS`. What distilkit did not expect is raised here, and so is a warning."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        contextlib.chdir(cwd),
        mock.patch.object(app, "unexpected", raised),
        mock.patch.object(sys, "argv", ["distilkit", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as left:
            code = left.code or 0
    return Done(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))
