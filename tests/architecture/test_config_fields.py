"""A configuration field that nothing reads is a lie: each is read outside its own class and outside validation."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

VALIDATORS = {"model_validator", "field_validator"}


@dataclass
class Reads:
    """Where each attribute name is read: by the class that surrounds it, None outside all classes."""

    by_name: dict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))
    inside_method: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))

    def outside(self, name: str, owner: str) -> bool:
        return bool(self.by_name[name] - {owner})


def is_validator(function: ast.FunctionDef) -> bool:
    calls = (decorator.func for decorator in function.decorator_list if isinstance(decorator, ast.Call))
    return any(isinstance(call, ast.Name) and call.id in VALIDATORS for call in calls)


def attributes(node: ast.AST) -> set[str]:
    """Attributes read under ``node``, with the keywords of class patterns, which ``match`` reads too."""
    read = {a.attr for a in ast.walk(node) if isinstance(a, ast.Attribute) and isinstance(a.ctx, ast.Load)}
    return read | {name for p in ast.walk(node) if isinstance(p, ast.MatchClass) for name in p.kwd_attrs}


def collect(trees: dict[Path, ast.Module]) -> Reads:
    reads = Reads()
    for tree in trees.values():
        for node in tree.body:
            if not isinstance(node, ast.ClassDef):
                for name in attributes(node):
                    reads.by_name[name].add(None)
                continue
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and is_validator(member):
                    continue
                for name in attributes(member):
                    reads.by_name[name].add(node.name)
                    if isinstance(member, ast.FunctionDef):
                        reads.inside_method[node.name, member.name].add(name)
    return reads


def config_classes(trees: dict[Path, ast.Module]) -> dict[str, ast.ClassDef]:
    classes = {node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)}
    known = {"StrictModel"}
    while True:
        grown = known | {name for name, node in classes.items() if known & {ast.unparse(base) for base in node.bases}}
        if grown == known:
            return {name: classes[name] for name in known - {"StrictModel"}}
        known = grown


def is_answered(member: ast.AnnAssign) -> bool:
    """A field of another project's schema that acts on nothing, and says so to whoever sets it."""
    return isinstance(member.value, ast.Call) and ast.unparse(member.value.func) == "unused"


def fields(node: ast.ClassDef) -> Iterator[str]:
    for member in node.body:
        if not isinstance(member, ast.AnnAssign) or is_answered(member):
            continue
        if "ClassVar" not in ast.unparse(member.annotation):
            yield ast.unparse(member.target)


def alternatives(node: ast.ClassDef) -> set[str]:
    """The fields that ``one_of`` names."""
    groups = (m.value for m in node.body if isinstance(m, ast.AnnAssign) and ast.unparse(m.target) == "one_of")
    return {c.value for group in groups if group for c in ast.walk(group) if isinstance(c, ast.Constant)}


def unread(trees: dict[Path, ast.Module]) -> list[str]:
    reads = collect(trees)
    found = []
    for owner, node in sorted(config_classes(trees).items()):
        used = [
            names
            for (name, method), names in reads.inside_method.items()
            if name == owner and reads.outside(method, owner)
        ]
        through_methods = set().union(*used)
        if "one_of" in through_methods:
            through_methods |= alternatives(node)
        found += [
            f"{owner}.{name}" for name in fields(node) if not reads.outside(name, owner) and name not in through_methods
        ]
    return found


def test_every_config_field_is_read(modules):
    assert unread(modules) == []


SAMPLE = """
class Inner(StrictModel):
    read_by_property: int
    read_by_nobody: int
    read_by_validator_alone: int
    constant: ClassVar[int] = 3

    @property
    def doubled(self):
        return 2 * self.read_by_property

    @property
    def unused(self):
        return self.read_by_nobody

    @model_validator(mode="after")
    def check(self):
        assert self.read_by_validator_alone
        return self

class Choice(StrictModel):
    one_of: ClassVar = (OneOf(("left", "right"), required=True),)
    left: int | None = None
    right: int | None = None
    label: str
    said_to_act_on_nothing: int = unused("for this reason")

    @property
    def kind(self):
        return next(name for name in self.one_of[0].fields if getattr(self, name))

class Derived(Inner):
    matched: int
    forgotten: int

def use(inner, choice):
    match inner:
        case Derived(matched=3):
            return 3
    return inner.doubled + len(choice.kind)
"""


def test_the_check_sees_what_nobody_reads():
    assert unread({Path("sample.py"): ast.parse(SAMPLE)}) == [
        "Choice.label",
        "Derived.forgotten",
        "Inner.read_by_nobody",
        "Inner.read_by_validator_alone",
    ]


@pytest.mark.parametrize("name", ["OptimizerConfig", "LearningRateConfig"])
def test_the_check_finds_the_config_classes(name, modules):
    assert name in config_classes(modules)
