"""Griffe extensions: what the API pages need beyond what griffe, which reads the source without running it, does by itself."""

import ast
import re
from typing import Any

from griffe import Class, Extension, Function, Object, Parameter, ParameterKind, Parameters

# A doctest that stands at the margin, up to the next empty line.
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
DECORATORS = {"attrs.frozen", "attrs.define", "distilkit.fields.component"}


class AttrsSignature(Extension):
    """Give every class that attrs makes (`attrs.frozen`, `fields.component`) the `__init__` that attrs will write.

    Griffe knows dataclasses only. A field made by `distilkit.fields`, such as `width: int = integer(default=128, least=1)`, is shown
    as `width: int = 128`.
    """

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Called by griffe for each class, once its members are known."""
        if "__init__" in cls.members or not any(d.callable_path in DECORATORS for d in cls.decorators):
            return
        # Fields of a base come first; ours have such bases in their own module only.
        beside = {} if cls.parent is None else {name: one for name, one in cls.parent.members.items() if not one.is_alias}
        owners = [*(beside[str(base)] for base in cls.bases if str(base) in beside), cls]
        fields = [
            a
            for owner in owners
            for a in owner.members.values()
            if a.is_attribute and "instance-attribute" in a.labels and a.annotation is not None
        ]
        parameters = [
            Parameter(f.name.lstrip("_"), annotation=f.annotation, kind=ParameterKind.positional_or_keyword, default=_default(f.value))
            for f in fields
            if "init=False" not in str(f.value)
        ]
        cls.set_member("__init__", Function("__init__", parameters=Parameters(Parameter("self"), *parameters), lineno=cls.lineno))


class FencedDoctests(Extension):
    """Show doctests as code: Markdown would take `>>>` for quotations in quotations."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub("```pycon\n\\g<0>\n```", obj.docstring.value)


def _default(value: Any) -> str | None:
    if value is None:
        return None
    tree = ast.parse(str(value), mode="eval").body
    if not isinstance(tree, ast.Call):
        return str(value)
    builder = ast.unparse(tree.func).rpartition(".")[2]
    if builder[:1].isupper() and builder != "Factory":
        return str(value)
    keywords = {k.arg: k.value for k in tree.keywords}
    given = keywords.get("default", keywords.get("factory"))
    if given is None or ast.unparse(given).endswith("NOTHING"):
        return None
    made = builder == "Factory" or "factory" in keywords or isinstance(given, ast.Lambda)
    return ast.unparse(given.body) if isinstance(given, ast.Lambda) else ast.unparse(given) + ("()" if made else "")
