"""Reading the file of a spec, or the recipe of that name, with an error that shows what is there instead."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from distilkit import recipes
from distilkit.errors import nearest
from distilkit.spec.problems import Problem, SpecError

_MOST_NAMES = 5


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a spec's file, or of a recipe.

    Args:
        path: the file, in UTF-8; where there is none, the name of a recipe such as `paper/cifar10-ipc10`; or the URL of a file.

    Raises:
        SpecError: the file cannot be read; the message names the nearest recipe or the nearest `.toml` files of that folder.
        RunError: a URL cannot be read.
    """
    file = Path(path)
    if ":/" in os.fspath(path) and not file.exists():
        from distilkit.storage.remote import text_at, url_of  # loads what a file of this machine does not need

        if (url := url_of(path)) is not None:
            try:
                return text_at(url)
            except FileNotFoundError:
                why = f"There is no file {url}."
            except UnicodeDecodeError as error:
                why = f"{url} is not text in UTF-8 (byte {error.start} cannot be read), as TOML has to be."
            raise SpecError([Problem(url, None, "a TOML file", None, why=why)], url)
    if not file.exists() and file.as_posix() in recipes.names():
        return recipes.read(file.as_posix())
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        why = f"{file} is not text in UTF-8 (byte {error.start} cannot be read), as TOML has to be."
    except FileNotFoundError:
        why = f"There is no file {file}."
    except IsADirectoryError:
        why = f"{file} is a folder, not a spec."
    except OSError as error:
        why = f"{file} cannot be read: {error.strerror}."
    near = [] if file.is_file() else _nearest_specs(file)
    recipe = None if file.exists() else nearest(file.as_posix(), recipes.names())
    if recipe is not None and nearest(file.name, [spec.name for spec in near]) is None:
        why += " `distilkit recipes` lists the recipes, which need no file."
        raise SpecError([Problem(str(file), None, "a TOML file or a recipe", recipe, why=why)], str(file))
    names = f" The .toml files there are {', '.join(map(str, near))}." if len(near) > 1 else ""
    fix = str(near[0]) if near else None
    raise SpecError([Problem(str(file), None, "a TOML file", fix, why=f"{why}{names}{'' if near else _looked_in(file)}")], str(file))


def _nearest_specs(file: Path) -> list[Path]:
    folder = file if file.is_dir() else file.parent
    specs = {spec.name: spec for spec in sorted(folder.glob("*.toml"))} if folder.is_dir() else {}
    names = difflib.get_close_matches(file.name, specs, n=_MOST_NAMES, cutoff=0.0)
    return [specs[name] for name in names]


def _looked_in(file: Path) -> str:
    folder = file if file.is_dir() else file.parent
    if not folder.is_dir():
        return f" The folder {folder.resolve()} is not there either."
    return f" The folder {folder.resolve()} holds no .toml file."
