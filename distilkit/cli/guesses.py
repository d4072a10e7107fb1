"""What a person types for a command that is none, and what to type instead. Typer itself tells of a command that is spelt nearly so."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

from distilkit.errors import DistilkitError

MEANT = {
    "distil": "run",
    "distill": "run",
    "train": "run",
    "check": "validate",
    "list": "recipes",
    "info": "show",
    "watch": "report RUN --watch",
    "help": "--help",
    "version": "--version",
}


def guessing(of_spec: str, others: Mapping[str, str]) -> type[TyperGroup]:
    """A group of commands that knows what else people type in their place.

    Args:
        of_spec: the command that is meant where the name of a spec is typed alone.
        others: what is meant by other words.
    """

    class Guessing(TyperGroup):
        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            if not ctx.resilient_parsing and args and args[0] not in self.commands and (meant := self.meant(args[0])):
                raise DistilkitError(f"There is no command {args[0]!r}.", fix=f"distilkit {meant}")
            return super().resolve_command(ctx, args)

        def meant(self, word: str) -> str | None:
            from distilkit import recipes

            if word.endswith(".toml") or word in recipes.names():
                return f"{of_spec} {shlex.quote(word)}"
            inner = (name for name, command in self.commands.items() if word in getattr(command, "commands", ()))
            return next((f"{name} {word}" for name in inner), others.get(word))

    return Guessing


class Recipes(TyperGroup):
    """`distilkit recipes NAME` is `distilkit recipes show NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command, and what is left for it."""
        alone = len(args) == 1 and args[0] not in self.commands and not args[0].startswith("-")
        return super().resolve_command(ctx, ["show", *args] if alone else args)
