"""JSON Schema of a spec, for editors that complete and check TOML: what every key takes, and what kinds there are.

It is made of the fields of the components, so that it cannot say anything else than what is checked. What involves several
fields, such as a window within its horizon, only `distilkit validate` finds.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import attrs

from distilkit import __version__
from distilkit.spec import kinds
from distilkit.spec.hints import Field, default_of, is_table, settable

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ANYTHING: dict[str, Any] = {"type": "object", "description": 'of your own, by kind = "python"', "required": ["kind", "target"]}
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def json_schema() -> dict[str, Any]:
    """The schema of a whole spec, in the dialect of 2020-12, as nested dicts that `json` writes.

    >>> schema = json_schema()
    >>> schema["properties"]["seed"]["type"], "ConvNet" in schema["$defs"]
    ('integer', True)
    """
    return _Schema().whole()


class _Schema:
    """The definitions so far, by the name of the class."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        root = kinds.import_name(kinds.ROOT)
        table = self.table(root)
        head = {"$schema": DIALECT, "title": f"A spec of distilkit {__version__}"}
        return head | table | {"$defs": dict(sorted(self.definitions.items()))}

    def table(self, cls: type, kind: str | None = None) -> dict[str, Any]:
        """Of the table of a class; with its kind, if it has one."""
        words, properties = _arguments(cls), {}
        needed = [] if kind is None else ["kind"]
        if kind is not None:
            properties["kind"] = {"const": kind}
        for name, field in settable(cls).items():
            if field.metadata.get("python"):
                continue
            properties[name] = self.field(field) | ({"description": words[name]} if name in words else {})
            if field.default is attrs.NOTHING:
                needed.append(name)
        summary = (inspect.getdoc(cls) or "").split("\n\n")[0]
        found = {"type": "object", "description": summary, "properties": properties, "additionalProperties": False}
        return found | ({"required": needed} if needed else {})

    def field(self, field: Field) -> dict[str, Any]:
        """Of what one key takes."""
        if not is_table(field):
            return dict(field.metadata.get("schema", {})) | _default(field)
        if "part" in field.metadata:
            part = field.metadata["part"]
            found = [self.reference(part.__name__, part)]
        else:
            slot = field.metadata["slot"]
            found = [self.reference(kind, kinds.resolve(slot, kind), kind) for kind in kinds.KINDS[slot]]
            found += [{"$ref": "#/$defs/python"}] if slot in kinds.PYTHON_SLOTS else []
            self.definitions.setdefault("python", ANYTHING | {"properties": {"kind": {"const": "python"}, "target": {"type": "string"}}})
        if field.metadata.get("optional"):
            found.append({"type": "object", "properties": {"kind": {"const": "none"}}, "required": ["kind"], "additionalProperties": False})
        return found[0] if len(found) == 1 else {"oneOf": found}

    def reference(self, name: str, cls: type, kind: str | None = None) -> dict[str, Any]:
        """To the definition of a class, which is made if it is not there."""
        if name not in self.definitions:
            self.definitions[name] = {}  # in case that it holds itself
            self.definitions[name] = self.table(cls, kind)
        return {"$ref": f"#/$defs/{name}"}


def _default(field: Field) -> dict[str, Any]:
    default = default_of(field)
    if default is attrs.NOTHING or default is None:
        return {}
    return {"default": list(default) if isinstance(default, tuple) else default}


def _arguments(cls: type) -> dict[str, str]:
    """What the docstring of a component says of its fields."""
    text = inspect.getdoc(cls) or ""
    _, _, rest = text.partition("\nArgs:\n")
    section = re.split(r"\n\n(?=\S)", rest)[0]
    return {name: " ".join(words.split()) for name, words in _ARGUMENT.findall(section)}
