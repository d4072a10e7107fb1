"""A copy of a run's folder at a URL: a bucket, a server, whatever fsspec reaches; for machines that are lent, and whose disks go with them.

While the run goes on, spec.toml and the checkpoints are sent, each a file that is there whole or not at all; and now and then the results,
some hundred files, so that they take a twentieth of the time at most. All of it follows when the run ends or is stopped. The store's root,
without which it cannot be opened, is taken away first and sent last. A machine whose folder of the run holds nothing fetches all that
is there, and goes on.
"""

from __future__ import annotations

import logging
import posixpath
import re
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from distilkit.errors import ResourceError, counted
from distilkit.storage.layout import NAME
from distilkit.storage.remote import CHECKPOINTS, PAUSES, ROOT, SPEC, file_system, is_final, listed, tried

logger = logging.getLogger("distilkit")

Result = TypeVar("Result")

RESULTS_EVERY = 60.0  # seconds at least between two times that results are sent while a run goes on
RESULTS_SHARE = 20  # of the time, one part in so many at most
OURS = (SPEC, CHECKPOINTS, f"{NAME}/")
FETCHED = ".fetched-"  # of a folder for what is being brought
BESIDE = (".png", ".name")  # figures, and the names under which trackers know the run


def _is_ours(name: str) -> bool:
    return name.startswith(OURS) or ("/" not in name and name.endswith(BESIDE))


def _newest(names: Iterable[str]) -> int:
    """The step of the newest checkpoint among files; -1 where there is none."""
    found = [re.fullmatch(r"checkpoints/step-(\d+)\.safetensors", name) for name in names]
    return max((int(one[1]) for one in found if one), default=-1)


def _says_the_same(one: Path, other: Path) -> bool:
    """Whether two files of TOML have the same values, whatever a person has written beside them."""
    try:
        trees = [tomllib.loads(path.read_text(encoding="utf-8")) for path in (one, other)]
    except (OSError, ValueError):
        return False
    return trees[0] == trees[1]


class Mirror:
    """The copy of one folder.

    Args:
        url: of a folder, such as s3://bucket/runs/mine.
        folder: the run's, here.

    Raises:
        RunError: what the kind of URL needs is not installed.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self._there, self._root = file_system(url)
        self._results_due = 0.0
        self._sent: dict[str, tuple[int, int]] = {}  # size and time of change of each file that is there as it is here

    def fetch(self, accept: Callable[[Path], object]) -> bool:
        """Bring what is there here, if nothing of the run is here or it is further there; whether that was so.

        All of it is brought to a folder of its own first, so that nothing is replaced here before it is there whole.

        Args:
            accept: is given a folder with spec and checkpoints of what is there, and raises an error if that is another run.

        Raises:
            ResourceError: it cannot be read.
            DistilkitError: of `accept`.
        """
        for left in self.folder.glob(f"{FETCHED}*"):  # of a fetch that was killed
            shutil.rmtree(left, ignore_errors=True)
        here, names = self._here(), self._names()
        self._sent = dict.fromkeys(names, (-1, -1))  # there, and perhaps not as it is here
        if not names:
            return False
        with tempfile.TemporaryDirectory(prefix=FETCHED, dir=self.folder) as temporary:
            folder = Path(temporary)
            telling = [name for name in names if name == SPEC or name.startswith(CHECKPOINTS)]
            telling = telling if _newest(names) >= 0 else names
            for name in telling:
                self._get(name, folder)
            begun = any(name.startswith((CHECKPOINTS, f"{NAME}/")) for name in names)
            if begun or SPEC not in here or not _says_the_same(folder / SPEC, here[SPEC]):
                accept(folder)
            if here and _newest(names) <= _newest(here):
                return False
            if ROOT not in names:  # a store that was being sent when its machine was lost: the checkpoints have all of it
                names = [name for name in names if not name.startswith(f"{NAME}/")]
            for name in names:
                if name not in telling:
                    self._get(name, folder)
            self._take(folder, names)
        logger.info("fetched %s from %s", counted(len(names), "file"), self.url)
        return True

    def _take(self, folder: Path, names: Iterable[str]) -> None:
        """Put what was brought in its place: checkpoints behind what they do not have, and before the results, which they have."""
        if ROOT in names:
            (self.folder / ROOT).unlink(missing_ok=True)
            shutil.rmtree(self.folder / NAME, ignore_errors=True)
        for name in sorted(names, key=lambda name: (name == ROOT, name.startswith(f"{NAME}/"), name == SPEC, name.startswith(CHECKPOINTS))):
            target = self.folder / name
            if name == SPEC and _says_the_same(folder / name, target):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(target)
            self._sent[name] = self._state(target)

    def send(self, *, ended: bool = False) -> None:
        """Send what has changed: spec and checkpoints; where it is time, or the run has ended, all of it. What is gone here goes there too.

        Raises:
            ResourceError: it cannot be written there.
        """
        began = time.monotonic()
        whole = ended or began >= self._results_due
        here = {name: path for name, path in self._here().items() if whole or not name.startswith(f"{NAME}/")}
        changed = [name for name, path in here.items() if self._sent.get(name) != self._state(path)]
        store = [name for name in changed if name.startswith(f"{NAME}/")]
        if store and ROOT in self._sent:
            self._remove(ROOT)  # nobody opens a store that is half the old one
        if store and ROOT not in changed:
            changed.append(ROOT)
        for name in sorted(changed, key=lambda name: (name == ROOT, name.startswith(f"{NAME}/"), name != SPEC)):
            state = self._state(here[name])
            self._tried(f"send {name}", partial(self._put, here[name], name))
            self._sent[name] = state
        for name in [name for name in self._sent if name not in here and (whole or name.startswith(CHECKPOINTS))]:
            self._remove(name)
        if whole:
            now = time.monotonic()
            self._results_due = now + max(RESULTS_EVERY, RESULTS_SHARE * (now - began))

    def _here(self) -> dict[str, Path]:
        """The files of the run, by their names below its folder."""
        found = {path.relative_to(self.folder).as_posix(): path for path in sorted(self.folder.rglob("*")) if path.is_file()}
        return {name: path for name, path in found.items() if _is_ours(name)}

    def _names(self) -> list[str]:
        """The files there, by their names below the URL; none, where no run is."""

        def find() -> list[str]:
            try:
                return [*listed(self._there, self._root)]
            except FileNotFoundError:
                return []

        names = sorted(name for name in self._tried("look", find) if _is_ours(name))
        return names if any(name.startswith(OURS) for name in names) else []

    def _get(self, name: str, folder: Path) -> None:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._tried(f"fetch {name}", partial(self._there.get_file, f"{self._root}/{name}", str(target)))

    def _put(self, path: Path, name: str) -> None:
        place = f"{self._root}/{name}"
        self._there.makedirs(posixpath.dirname(place), exist_ok=True)
        self._there.put_file(str(path), place)

    def _remove(self, name: str) -> None:
        def remove() -> None:
            with suppress(FileNotFoundError):  # not `exists`, which many file systems answer with no where they cannot tell
                self._there.rm_file(f"{self._root}/{name}")

        self._tried(f"remove {name}", remove)
        self._sent.pop(name, None)

    @staticmethod
    def _state(path: Path) -> tuple[int, int]:
        found = path.stat()
        return found.st_size, found.st_mtime_ns

    def _tried(self, what: str, work: Callable[[], Result]) -> Result:
        """Do something over a network, several times if need be."""
        try:
            return tried(work)
        except Exception as error:  # each file system has kinds of its own
            words: Any = str(error).splitlines()[:1] or [type(error).__name__]
            tries = "" if is_final(error) else f", after {len(PAUSES) + 1} tries"
            raise ResourceError(
                f"Could not {what} at {self.url}{tries}: {words[0]}. What is in {self.folder} is whole; the same call goes on from there."
            ) from error
