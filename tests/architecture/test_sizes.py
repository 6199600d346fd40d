from __future__ import annotations

import ast

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "shared", "core"}


def test_files_stay_below_500_lines(root):
    files = (file for folder in ("src", "tests", "benchmarks") for file in (root / folder).rglob("*.py"))
    lines = {str(file.relative_to(root)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {path: count for path, count in lines.items() if count >= MAX_FILE_LINES} == {}


def test_functions_stay_below_80_lines(modules):
    # Counted from the docstring on: the signature of a command is a table of its flags.
    lines = {
        f"{path}:{node.name}": node.end_lineno - node.body[0].lineno + 1
        for path, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: count for name, count in lines.items() if count >= MAX_FUNCTION_LINES} == {}


def test_no_module_is_named_for_nothing_in_particular(modules):
    assert {part.removesuffix(".py") for path in modules for part in path.parts} & VAGUE_NAMES == set()


def test_every_module_says_what_it_is(modules):
    assert [str(path) for path, tree in modules.items() if tree.body and ast.get_docstring(tree) is None] == []
