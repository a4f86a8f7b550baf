"""A kernel that Python imports says so to type checkers, and every kernel promises in a `.pxd` or keeps to itself."""

import ast

from tests.tidy.sources import PACKAGE, kernel_sources, python_sources

CORE = PACKAGE / "_core"


def imported_kernels():
    return sorted(
        {
            name.split(".")[2]
            for source in python_sources()
            for name, _ in source.imports
            if name.startswith("streamkit._core.") and name.count(".") >= 2
        }
    )


def test_every_kernel_that_python_imports_has_a_stub():
    missing = [name for name in imported_kernels() if not (CORE / f"{name}.pyi").exists()]

    assert missing == []


def test_every_stub_names_what_the_kernel_has():
    missing = []
    for path in sorted(CORE.glob("*.pyi")):
        kernel = __import__(f"streamkit._core.{path.stem}", fromlist=["_"])
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not _only_for_types(node):
                if not hasattr(kernel, node.name):
                    missing.append(f"{path.name}: {node.name}")
            elif isinstance(node, ast.AnnAssign) and not hasattr(kernel, ast.unparse(node.target)):
                missing.append(f"{path.name}: {ast.unparse(node.target)}")

    assert missing == []


def _only_for_types(node: ast.ClassDef | ast.FunctionDef) -> bool:
    bases = [ast.unparse(base) for base in getattr(node, "bases", [])]
    return node.name.startswith("_") or any(base.split("[")[0] in {"Protocol", "TypedDict"} for base in bases)


def test_kernels_know_no_room():
    wrong = [
        f"{source.path}:{line} imports {name}"
        for source in kernel_sources()
        for name, line in source.imports
        if name.startswith("streamkit.") and not name.startswith(("streamkit._core", "streamkit.errors"))
    ]

    assert wrong == []


def test_every_kernel_says_what_it_serves():
    silent = [
        str(source.path)
        for source in kernel_sources()
        if source.path.suffix == ".pyx" and not source.text.lstrip().startswith(('"""', "#", "# "))
    ]

    assert silent == []
