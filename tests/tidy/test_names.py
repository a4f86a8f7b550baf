"""Names say what a thing is; every room says what it is for."""

import ast
import re

import pytest

from tests.tidy.sources import PACKAGE, ROOT, functions, python_sources, sources

BANNED_FILES = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "manager", "managers", "base", "core"}
BANNED_ENDINGS = ("Manager", "Helper", "Utils", "Util", "Impl")


def test_no_file_is_named_after_nothing():
    wrong = [str(source.path) for source in sources() if source.path.stem in BANNED_FILES]

    assert wrong == []


def test_no_class_is_named_after_nothing():
    wrong = [
        f"{source.path}:{node.lineno} {node.name}"
        for source in python_sources()
        for node in ast.walk(source.tree())
        if isinstance(node, ast.ClassDef) and node.name.endswith(BANNED_ENDINGS)
    ]

    assert wrong == []


def test_every_module_says_what_it_is_for():
    silent = [str(source.path) for source in python_sources() if not ast.get_docstring(source.tree())]

    assert silent == []


@pytest.mark.parametrize("room", sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()))
def test_a_room_says_who_calls_it_and_where_to_begin(room):
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""

    assert docstring.count("\n") >= 2, "a sentence, what it is not for, who calls it"
    assert re.search(r"\b[Rr]ead\s", docstring), "which file to read first"


def test_rooms_import_nothing_in_their_init():
    wrong = [
        f"{source.path}:{line} imports {name}"
        for source in python_sources()
        if source.path.name == "__init__.py" and source.path.parent.parent == PACKAGE.relative_to(ROOT)
        for name, line in source.imports
        if name.startswith("streamkit._core") and source.room == "_core"
    ]

    assert wrong == []


def test_nothing_is_left_for_later():
    wrong = []
    for source in sources():
        for number, line in enumerate(source.text.splitlines(), 1):
            if any(word in line for word in ("TODO", "FIXME", "XXX", "NotImplementedError")):
                wrong.append(f"{source.path}:{number} {line.strip()}")

    assert wrong == []


def test_no_function_only_pretends():
    wrong = []
    for source in python_sources():
        protocols = {
            id(node)
            for cls in ast.walk(source.tree())
            if isinstance(cls, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in cls.bases)
            for node in cls.body
        }
        for function in functions(source.tree()):
            body = [node for node in function.body if not isinstance(node, ast.Expr)]
            if id(function) not in protocols and not body and _is_empty(function) and not _overload(function):
                wrong.append(f"{source.path}:{function.lineno} {function.name}")
            if any(isinstance(node, ast.Pass) for node in function.body):
                wrong.append(f"{source.path}:{function.lineno} {function.name} passes")

    assert wrong == []


def _is_empty(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...
        for node in function.body
    )


def _overload(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("overload" in ast.unparse(decorator) for decorator in function.decorator_list)
