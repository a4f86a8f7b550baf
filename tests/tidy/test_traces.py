"""What a clone holds names no machine of ours."""

import re

from tests.tidy.sources import ROOT, project_files

MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/[\w.]")
REGISTRY_URL = re.compile(r"https?://[\w.:-]+/(?:[\w/-]*/)?simple\b", re.I)
KEYS = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|AKIA[0-9A-Z]{16}")
TEXT = {".py", ".pyx", ".pxd", ".pyi", ".h", ".md", ".toml", ".cfg", ".ini", ".txt", ".sh", ".yml", ".yaml", ".json",
        ""}
OURSELVES = "tests/tidy/test_traces.py"


def lines():
    for path in project_files():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in TEXT and name != OURSELVES and path.stat().st_size < 1 << 20:
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                yield f"{name}:{number}", line


def test_no_machine_path_is_written_down():
    assert [where for where, line in lines() if MACHINE_PATHS.search(line)] == []


def test_no_registry_host_is_written_down():
    found = [
        where
        for where, line in lines()
        if REGISTRY_URL.search(line) or re.search(r"index-url|PIP_INDEX_URL|artifactory", line, re.IGNORECASE)
    ]

    assert found == []


def test_no_key_is_written_down():
    assert [where for where, line in lines() if KEYS.search(line)] == []
