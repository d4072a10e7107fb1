"""States to go on from, for a loop of your own: one safetensors file a checkpoint, its JSON in the file's header. Never pickle.

One file is replaced in one step, so a kill leaves the checkpoint before or the one after, never a part. A digest over the content
finds what the disk damaged; `latest` then falls back to the checkpoint before and says so. `flatten` and `unflatten` turn a
tree of state into named tensors and back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from distilkit.errors import RunError, listing

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
_FILE = re.compile(r"step-(\d+)\.safetensors")


@attrs.frozen(eq=False)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        step: the step it was saved under.
        tensors: CPU tensors by name.
        meta: the JSON-able rest.
        warnings: one sentence for each newer checkpoint that could not be read; empty when all is well.
    """

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    warnings: tuple[str, ...] = ()


def save(folder: str | os.PathLike[str], step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Save a checkpoint in one step, and delete what it makes superfluous.

    Args:
        folder: made when it is not there.
        step: its number, at least 0. Checkpoints of a higher number are deleted: they belong to a future that was given up.
        tensors: tensors by name, any device and dtype. Values, dtype and shape are kept; strides are not (a tensor in
            channels_last comes back contiguous).
        meta: JSON-able.
        keep: how many checkpoints stay, this one counted.

    Returns:
        The path of the file.

    Raises:
        RunError: `meta` is not JSON-able, or `step` or `keep` is out of range.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(folder, 3, {"image": torch.ones(2)}, {"seed": 0})
    ...     found = latest(folder)
    >>> found.step, found.tensors["image"], found.meta
    (3, tensor([1., 1.]), {'seed': 0})
    """
    from safetensors.torch import save as serialize

    if step < 0 or keep < 1:
        raise RunError(f"step = {step} and keep = {keep} cannot be: step is at least 0, keep at least 1.")
    # A copy each: safetensors refuses tensors that share memory, such as views of one flat vector.
    plain = {name: _contiguous(t) for name, t in tensors.items()}
    try:
        text = json.dumps(dict(meta), sort_keys=True)
    except TypeError as error:
        raise RunError(f"The meta of a checkpoint must be plain JSON: {error}.") from error
    if odd := [name for name, tensor in plain.items() if tensor.is_complex()]:
        raise RunError(f"A checkpoint holds real numbers, and {odd[0]} is {plain[odd[0]].dtype}.", fix="torch.view_as_real(tensor)")
    header = {"format": "distilkit checkpoint 1", "step": str(step), "meta": text, "digest": _digest(step, plain, text)}
    target = path_of(Path(folder), step)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        file.write(serialize(plain, metadata=header))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, target)
    sync_folder(target.parent)
    found = steps(folder)
    for number in [n for n in found if n > step] + [n for n in found if n <= step][: -keep or None]:
        log.debug("deleting checkpoint %d in %s", number, folder)
        path_of(Path(folder), number).unlink(missing_ok=True)
    for left in target.parent.glob("step-*.part"):  # of a save that was killed
        left.unlink(missing_ok=True)
    return target


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder, where the system can do that: a rename is safe from a power cut only then."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps that have a checkpoint in the folder, rising; empty when there is no folder."""
    path = Path(folder)
    matches = [_FILE.fullmatch(f.name) for f in path.iterdir()] if path.is_dir() else []
    return sorted(int(m.group(1)) for m in matches if m)


def latest(folder: str | os.PathLike[str]) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None when there is none at all.

    A checkpoint that is truncated or damaged is passed over: the one returned carries a sentence about it in `warnings`, and it
    is logged as a warning.

    Raises:
        RunError: there are checkpoints, but none can be read.
    """
    trouble: list[str] = []
    for step in reversed(steps(folder)):
        try:
            found = load(folder, step)
        except RunError as error:
            trouble.append(error.message)
            log.warning("%s Looking for the checkpoint before.", error.message)
            continue
        return attrs.evolve(found, warnings=tuple(trouble))
    if trouble:
        raise RunError(
            f"None of the checkpoints in {os.fspath(folder)!r} can be read. " + " ".join(trouble), fix=f"mv {folder} {folder}.old"
        )
    return None


def load(folder: str | os.PathLike[str], step: int) -> Checkpoint:
    """Load the checkpoint of a step.

    Raises:
        RunError: it is not there, is truncated or damaged, or is not a checkpoint of distilkit.
    """
    from safetensors import SafetensorError, safe_open

    from distilkit.functional.pytrees import aligned

    path = path_of(Path(folder), step)
    if not path.is_file():
        raise RunError(f"There is no checkpoint {path}; the folder has the steps {steps(folder)}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: aligned(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        text, digest = header["meta"], header["digest"]
        meta = json.loads(text)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(f"The checkpoint {path} cannot be read: {type(error).__name__}: {error}.") from error
    if _digest(step, tensors, text) != digest:
        raise RunError(f"The checkpoint {path} is damaged: its content does not match its digest.")
    return Checkpoint(step, tensors, meta)


def flatten(tree: Any) -> dict[str, Tensor]:
    """The tensors and numbers of a tree, by their path in it.

    Walks what optree walks (tuples, named tuples, lists, dicts, None) and attrs values. An `int`, `float` or `bool` becomes a tensor
    without dimensions. Other leaves, such as strings, are not state: `unflatten` takes them from its template.

    >>> import torch
    >>> flatten({"step": 3, "moments": (torch.zeros(2), "adam")})
    {"['moments'][0]": tensor([0., 0.]), "['step']": tensor(3)}
    """
    import torch

    found: dict[str, Tensor] = {}

    def collect(name: str, leaf: Any) -> Any:
        found[name] = leaf if isinstance(leaf, torch.Tensor) else torch.tensor(leaf, dtype=_numbers()[type(leaf)])
        return leaf

    _walk(tree, "", collect)
    return found


def unflatten(template: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put the tensors that `flatten` named in their places in a tree of the same shape.

    Args:
        template: a tree with the structure that was flattened, such as a fresh `init()`. Tensors are put on the device of its
            tensors; its other leaves stay.
        tensors: by path, as `flatten` gave them.

    Raises:
        RunError: names are missing or left over, or a tensor has another shape or dtype than the template's.
    """
    import torch

    wanted = flatten(template)
    if wanted.keys() != tensors.keys():
        missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
        words = [f"{what} {listing(names[:5])}" for what, names in (("it lacks", missing), ("it has also", extra)) if names]
        raise RunError(f"The saved state is of another structure than this run's: {'; '.join(words)}.")

    def place(name: str, leaf: Any) -> Any:
        value = tensors[name]
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            ours = f"{tuple(wanted[name].shape)} {wanted[name].dtype}"
            raise RunError(f"The saved state has {name} of {tuple(value.shape)} {value.dtype}, but this run has {ours} there.")
        if not isinstance(leaf, torch.Tensor):
            return value.item()
        return value.to(leaf.device).requires_grad_(leaf.requires_grad)

    return _walk(template, "", place)


def _walk(tree: Any, prefix: str, visit: Callable[[str, Any], Any]) -> Any:
    """Rebuild the tree with `visit(path, leaf)` at each tensor and number."""
    import optree
    import torch

    paths, leaves, structure = optree.tree_flatten_with_accessor(tree)

    def one(path: str, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) or type(leaf) in _numbers():
            return visit(path, leaf)
        if attrs.has(type(leaf)):
            fields = [f for f in attrs.fields(type(leaf)) if f.init]
            return attrs.evolve(leaf, **{f.alias: _walk(getattr(leaf, f.name), f"{path}.{f.name}", visit) for f in fields})
        return leaf

    return optree.tree_unflatten(structure, [one(prefix + p.codify(""), leaf) for p, leaf in zip(paths, leaves, strict=True)])


def _numbers() -> dict[type, Any]:
    import torch

    return {bool: torch.bool, int: torch.int64, float: torch.float64}


def _contiguous(tensor: Tensor) -> Tensor:
    import torch

    return tensor.detach().to("cpu", copy=True).clone(memory_format=torch.contiguous_format)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:09d}.safetensors"


def _digest(step: int, tensors: Mapping[str, Tensor], text: str) -> str:
    import torch

    digest = hashlib.blake2b(f"{step}\n{text}".encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
