"""YAML written by hand, for a file that a person will read and change: blocks with comments, scalars that stay put."""

from __future__ import annotations

import textwrap

import yaml


def block(text: str, indent: str = "") -> str:
    """``text`` without its common indentation and surrounding blank lines, indented by ``indent``."""
    return textwrap.indent(textwrap.dedent(text).strip("\n") + "\n", indent)


def scalar(value: str) -> str:
    """A YAML scalar that stands on one line, also between braces; ``$`` is doubled, since ``${NAME}`` is expanded."""
    return key(value.replace("$", "$$"))


def key(name: str) -> str:
    """A key of a mapping, in which nothing is expanded."""
    style = '"' if name.splitlines() != [name] else None
    listed = yaml.safe_dump([name], default_flow_style=True, default_style=style, width=10**6, allow_unicode=True)
    return listed.strip().removeprefix("[").removesuffix("]")
