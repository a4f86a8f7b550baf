"""A file is questioned at 600 lines and refused at 1,000; a function is refused above 70."""

import re
import warnings

from tests.tidy.sources import PACKAGE, ROOT, functions, kernel_sources, python_sources

FILE_LINES_QUESTIONED = 600
FILE_LINES_MAX = 1000
FUNCTION_LINES_MAX = 70
KERNEL_FUNCTION = re.compile(
    r"^( *)(?:async )?(?:cpdef|cdef|def)\b(?! +(?:class|enum|struct|packed|extern|union))[^=]*?(\w+)\("
)


def source_paths():
    suffixes = {".py", ".pyx", ".pxd", ".pyi", ".h"}
    folders = [PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "examples"]
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes)


def test_files_stay_readable():
    lines = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in source_paths()}

    for path, count in lines.items():
        if count > FILE_LINES_QUESTIONED:
            warnings.warn(f"{path} has {count} lines: could it be two files?", stacklevel=1)
    assert {str(path): count for path, count in lines.items() if count > FILE_LINES_MAX} == {}


def test_functions_fit_on_a_page():
    long = [
        f"{source.path}:{function.lineno} {function.name} has {function.end_lineno - function.lineno + 1} lines"
        for source in python_sources()
        for function in functions(source.tree())
        if function.end_lineno - function.lineno + 1 > FUNCTION_LINES_MAX
    ]

    assert long == []


def kernel_functions(text):
    """(line, name, line count) of each function of a Cython file, by indentation."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        match = KERNEL_FUNCTION.match(line)
        if match is None:
            continue
        indent = len(match.group(1))
        end = number
        while not lines[end].split("#")[0].rstrip().endswith(":"):
            end += 1
            if end >= len(lines) or end - number > 12:
                break
        else:
            last = end
            for after in range(end + 1, len(lines)):
                if lines[after].strip() and len(lines[after]) - len(lines[after].lstrip()) <= indent:
                    break
                if lines[after].strip():
                    last = after
            yield number + 1, match.group(2), last - number + 1


def test_kernel_functions_fit_on_a_page():
    long = [
        f"{source.path}:{line} {name} has {count} lines"
        for source in kernel_sources()
        for line, name, count in kernel_functions(source.text)
        if count > FUNCTION_LINES_MAX
    ]

    assert long == []
