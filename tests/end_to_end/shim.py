"""Disks and clocks that fail for one process: builds disk_shim.c, and steers it while that process runs."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SOURCE = Path(__file__).with_name("disk_shim.c")
_BUILD = Path(__file__).parents[2] / "build"
_BYTES = 64
_PLACES = {
    "write_errno": (0, "<i"), "write_left": (4, "<i"), "write_extends": (8, "<i"), "sync_errno": (12, "<i"),
    "sync_left": (16, "<i"), "sync_lies": (20, "<i"), "sync_delay_us": (24, "<i"), "skipped_percent": (28, "<i"),
    "clock_offset_ms": (32, "<q"), "writes_failed": (40, "<I"), "syncs_failed": (44, "<I"), "syncs_lied": (48, "<I"),
    "clocks_turned": (52, "<I"),
}  # fmt: skip


def build() -> Path:
    """The compiled shim; made once for each text of its source."""
    text = _SOURCE.read_bytes()
    made = _BUILD / f"disk_shim-{hashlib.sha256(text).hexdigest()[:12]}.so"
    if not made.exists():
        _BUILD.mkdir(exist_ok=True)
        draft = made.with_suffix(f".{os.getpid()}")
        # Without the checks that some compilers put in front of `open`, which would be defined twice.
        command = [
            os.environ.get("CC", "cc"), "-O2", "-Wall", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", str(_SOURCE), "-ldl",
            "-o", str(draft),
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        draft.rename(made)
    return made


class Steering:
    """The faults of one process. control: a small file that both ends map; directory: its data, and nothing else."""

    def __init__(self, control: Path, directory: Path, *, boot_id: Path | None = None) -> None:
        control.write_bytes(bytes(_BYTES))
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _BYTES)
        self.environment = {
            "LD_PRELOAD": " ".join(filter(None, [str(build()), os.environ.get("LD_PRELOAD")])),
            "DISK_SHIM_CONTROL": str(control), "DISK_SHIM_DIRECTORY": str(directory),
        } | ({} if boot_id is None else {"DISK_SHIM_BOOT_ID": str(boot_id)})  # fmt: skip

    def __getitem__(self, name: str) -> int:
        place, layout = _PLACES[name]
        return int(struct.unpack_from(layout, self._map, place)[0])

    def set(self, **values: int) -> None:
        """In the order given, so name the errno last."""
        for name, value in values.items():
            place, layout = _PLACES[name]
            struct.pack_into(layout, self._map, place, value)

    def fail_writes(self, number: int = errno.EIO, *, left: int = 1) -> None:
        self.set(write_extends=0, skipped_percent=0, write_left=left, write_errno=number)

    def fail_syncs(self, number: int = errno.EIO, *, left: int = 1) -> None:
        self.set(skipped_percent=0, sync_left=left, sync_errno=number)

    def fill(self, *, extends: bool = True, skipped_percent: int = 0) -> None:
        """The disk is full. extends: what was given to a file before can still be written."""
        self.set(write_extends=extends, skipped_percent=skipped_percent, write_left=-1, write_errno=errno.ENOSPC)

    def lie(self) -> None:
        self.set(sync_lies=1)

    def turn_clock(self, milliseconds: int) -> None:
        self.set(clock_offset_ms=milliseconds)

    def heal_disk(self) -> None:
        self.set(write_errno=0, write_left=0, write_extends=0, sync_errno=0, sync_left=0, sync_lies=0, sync_delay_us=0)

    def counted(self) -> Mapping[str, int]:
        """How often each fault happened, over the life of this control."""
        return {name: self[name] for name in ("writes_failed", "syncs_failed", "syncs_lied", "clocks_turned")}
