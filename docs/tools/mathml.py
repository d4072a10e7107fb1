"""MkDocs hook: formulas become MathML when the pages are built, so that a reader needs no script and no network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex writes for $...$ and $$...$$ when it is `generic`.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace every formula of a page."""
    return FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    tag, latex = match.groups()
    made: str = convert(html.unescape(latex), display="block" if tag == "div" else "inline")
    return f'<div class="formula">{made}</div>' if tag == "div" else made  # one that is wider than a phone scrolls by itself
