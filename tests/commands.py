"""The command line without a process of its own: the same entry point, exit code and words, and torch is imported once."""

import contextlib
import io
import multiprocessing
import os
import socket
import sys
from pathlib import Path
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


# Processes of their own that are copies of one in which all is imported: a start takes no second, where torchrun's take ten.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["distilkit.cli.app", "distilkit.runs.run", "distilkit.runs.open", "torch.distributed"])


def write_to(out, err):
    """Standard output and errors of this process are these files from now on."""
    for number, path in (1, out), (2, err):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)


def _one(folder, settings, arguments):
    """One of several processes: its output goes into files, since nobody reads its pipes."""
    write_to(*(folder / f"{name}-{settings['RANK']}" for name in ("out", "err")))
    os.environ.update(settings)
    sys.argv = ["distilkit", *arguments]
    main()


def distilkit_in(processes, folder, *arguments):
    """Run `distilkit ARGUMENTS` in so many processes that find each other as those of torchrun do; `folder` takes what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(folder) / f"said-{port}"
    here.mkdir(parents=True)
    alike = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    alike |= {"LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": str(port), "OMP_NUM_THREADS": "1"}
    jobs = []
    for rank in range(processes):
        settings = alike | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        jobs.append(FORKS.Process(target=_one, args=(here, settings, tuple(map(str, arguments)))))
        jobs[-1].start()
    for job in jobs:
        job.join(300)
    codes = [job.exitcode for job in jobs]
    out, err = ("".join((here / f"{name}-{rank}").read_text() for rank in range(processes)) for name in ("out", "err"))
    return Done(next((code for code in codes if code != 0), 0), out, err)
