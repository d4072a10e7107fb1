"""The command line without a process of its own: the same entry point, exit code and words, and torch is imported once."""

import contextlib
import io
import multiprocessing
import os
import runpy
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

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


# Processes of their own that are copies of one in which all is imported: a start takes no second, where Python with torch takes four.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("distilkit.cli.app", "distilkit.runs.run", "distilkit.runs.open", "tests.commands"),
        *("torch.distributed", "sklearn.cluster", "sklearn.datasets"),
        *("torch._dynamo", "dask.array"),  # torch.func.grad imports the one, and xarray the other, at their first use
    ]
)


def write_to(out, err):
    """Standard output and errors of this process are these files from now on."""
    for number, path in (1, out), (2, err):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)


def _begin(out, err, cwd, settings, work, arguments):
    """In the new process: where it stands, then its work. Nobody reads its pipes, so what it says goes into files."""
    write_to(out, err)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(settings)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    work(*arguments)


def command(*arguments):
    """`distilkit ARGUMENTS` in this process. It draws no pictures, which are half of the time of a small run."""
    sys.argv = ["distilkit", *arguments]
    with mock.patch("distilkit.runs.run.save_figures"):
        main()


def script(path, *arguments):
    """`python PATH ARGUMENTS` in this process."""
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")


class Forked:
    """A process that does `work(*arguments)`, a function of a module; what it says is in files of `folder`, a new one.

    `job` is the process; `out` and `err` are the files.
    """

    def __init__(self, work, *arguments, folder, cwd=".", **settings):
        folder.mkdir(parents=True)
        self.out, self.err = folder / "out", folder / "err"
        words = tuple(map(str, arguments))
        given = (self.out, self.err, Path(cwd).absolute(), os.environ | settings, work, words)
        self.job = FORKS.Process(target=_begin, args=given)
        self.job.start()

    def done(self, seconds=300):
        """Wait for its end."""
        self.job.join(seconds)
        assert self.job.exitcode is not None, self.out.read_text() + self.err.read_text()
        return Done(self.job.exitcode, self.out.read_text(), self.err.read_text())

    def has_said(self, words, seconds=120):
        """Wait until it has said that."""
        end = time.monotonic() + seconds
        while not self.out.exists() or words not in self.out.read_text():
            assert self.job.is_alive(), self.err.read_text()
            assert time.monotonic() < end, self.out.read_text()
            time.sleep(0.02)


def in_processes(count, folder, work, *arguments):
    """Do it in so many processes that find each other as those of torchrun do; `folder` takes what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alike = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    alike |= {"TORCHELASTIC_RUN_ID": port, "OMP_NUM_THREADS": "1"}
    here = Path(folder) / f"said-{port}"
    jobs = [Forked(work, *arguments, folder=here / str(rank), **alike, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    done = [job.done() for job in jobs]
    code = next((one.returncode for one in done if one.returncode != 0), 0)
    return Done(code, "".join(one.stdout for one in done), "".join(one.stderr for one in done))


def distilkit_in(count, folder, *arguments):
    """Run `distilkit ARGUMENTS` in so many processes that find each other."""
    return in_processes(count, folder, command, *arguments)
