"""The pipeline that judges a set as its file says: the network and protocol that are in the provenance of a set that was tested."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomlkit

from distilkit import spec as specs, storage
from distilkit.distiller import Distiller
from distilkit.errors import CombinationError
from distilkit.spec import kinds
from distilkit.storage.formats import description

SLOTS = {"network": "network", "optimizer": "optimizer", "loss": "loss", "augment": "augmentation"}  # of a learner, and of their kinds
STANDS_IN = "Digits"  # the kind of data that are given otherwise
BOUND = ("image_shape", "classes")  # what a network has from its data


def stated_provenance(path: Any) -> dict[str, Any] | None:
    """The provenance of a set in a file or folder of distilkit's own, if that says how networks are trained on it."""
    found = storage.load(path).provenance if storage.is_set(path) else (description.read(Path(path)) or {}).get("provenance")
    return found if isinstance(found, dict) and isinstance(found.get("training"), dict) else None


def stated_pipeline(
    provenance: Mapping[str, Any],
    *,
    data: str | None = None,
    overrides: Iterable[str] = (),
    of: str = "The set",
    trust: bool = False,
    instead: str = "--recipe SPEC.toml",
) -> Distiller:
    """The pipeline by which a set was judged. How it was distilled is not known: the truncation stands for none.

    Args:
        provenance: from `stated_provenance`.
        data: the kind of its real data; that of the provenance, where it is one that needs no path, when left out.
        overrides: of its values, as for `--set`.
        of: what to call the set in errors.
        trust: allow the overrides to name Python code.
        instead: what to type where the network, or another part, is somebody's own.

    Raises:
        CombinationError: it names a network of somebody's own, or data that is not known by a name.
        SpecError: a value cannot be.

    >>> training = {"network": "MLP(hidden=(8,), image_shape=(1, 8, 8))", "optimizer": "SGD(lr=0.1)", "steps": 5, "learned_rate": False}
    >>> made = stated_pipeline({"data": "Digits", "training": training})
    >>> made.learner.network, made.evaluation.steps
    (MLP(hidden=(8,), activation='relu', image_shape=None, classes=None), (5,))
    """
    how = provenance["training"]
    kind = provenance.get("data") if data is None else data
    if kind not in kinds.KINDS["data"]:
        raise CombinationError(
            f"{of} was made of data named {kind!r}, and does not know where those lie.",
            fix=f"--data {shlex.quote(f'{kind}.npz')}  # or their folder",
        )
    learner = {name: _component(how.get(name), slot, of, instead) for name, slot in SLOTS.items()}
    learner |= {name: how.get(name) for name in ("batch_per_class", "classes_per_step")}
    evaluation = {
        "steps": [how.get("steps", 300)],
        "labels": how.get("labels"),
        "precision": how.get("precision"),
        "optimizer": None if how.get("learned_rate") else learner["optimizer"],
    }
    tree = {
        "seed": provenance.get("seed", 0),
        "data": {"kind": kind},
        "learner": _there(learner),
        "evaluation": _there(evaluation),
        "truncation": {"kind": "FullUnroll", "horizon": 1},
    }
    return specs.loads(tomlkit.dumps(tree), overrides, trust=trust, source=of)


def _there(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _component(words: Any, slot: str, of: str, instead: str) -> dict[str, Any] | None:
    """A component as a table, from its `repr`; nothing of it is run."""
    if words is None:
        return None
    try:
        found = _value(ast.parse(words, mode="eval").body)
    except (SyntaxError, ValueError, TypeError):
        found = None
    if not isinstance(found, dict) or found.get("kind") not in kinds.KINDS[slot]:
        raise CombinationError(f"{of} says that networks are trained on it with {words}, which is no {slot} of distilkit.", fix=instead)
    return found


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        own = {word.arg: _value(word.value) for word in node.keywords if word.arg is not None and word.arg not in BOUND}
        return {"kind": node.func.id, **_there(own)}
    found = ast.literal_eval(node)
    return list(found) if isinstance(found, tuple) else found
