"""Judging a run, or anyone's distilled set: the entry points that take either.

`evaluate` is for Python; `assemble` puts together what the command `distilkit evaluate` says; `save` stores what came out.
"""

from distilkit.judging.assemble import assemble, parse_networks
from distilkit.judging.judge import Case, evaluate, require_free, save
from distilkit.judging.runs import read_set

__all__ = ["Case", "assemble", "evaluate", "parse_networks", "read_set", "require_free", "save"]
