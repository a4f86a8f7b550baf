"""The project's own source files, and what each of them imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "streamkit"
NOT_OURS = {".git", ".venv", "venv", "build", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache",
            ".hypothesis", ".benchmarks", "data"}
CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """path: relative to the project. imports: dotted names and the line of each."""

    path: Path
    text: str
    imports: tuple[tuple[str, int], ...]

    @property
    def module(self) -> str:
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def room(self) -> str:
        """The first name below `streamkit`; "" for the package itself."""
        return [*self.module.split("."), ""][1]

    @cache  # noqa: B019 (sources live as long as the tests)
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))


@cache
def python_sources() -> tuple[Source, ...]:
    return tuple(_python(path) for path in sorted(PACKAGE.rglob("*.py")))


@cache
def kernel_sources() -> tuple[Source, ...]:
    paths = sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])
    return tuple(_kernel(path) for path in paths)


def sources() -> tuple[Source, ...]:
    return python_sources() + kernel_sources()


def project_files() -> Iterator[Path]:
    """Everything a clone holds and a reader may open."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        generated = path.suffix in {".so", ".pyc", ".html"} or (path.suffix == ".c" and path.parent.name == "_core")
        egg = any(part.endswith(".egg-info") for part in parts)
        if path.is_file() and not (NOT_OURS & set(parts[:-1])) and not generated and not egg:
            yield path


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _python(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    found = []
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return Source(path.relative_to(ROOT), text, tuple(found))


def _kernel(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    found = [
        (match.group(1) or match.group(2), text.count("\n", 0, match.start()) + 1) for match in CIMPORT.finditer(text)
    ]
    return Source(path.relative_to(ROOT), text, tuple(found))
