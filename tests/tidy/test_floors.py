"""Imports go strictly down the floors; rooms on one floor do not see each other."""

from tests.tidy.sources import PACKAGE, sources

FLOORS = [
    {"errors", "_core"},
    {"model", "runtime"},
    {"protocol", "replication", "leases", "security", "observability", "expressions"},
    {"storage", "http"},
    {"metadata", "client"},
    {"transactions"},
    {"broker", "producer", "consumer"},
    {"delivery", "analytics", "functions", "queues", "topics", "compat"},
    {"gateway", "console"},
    {"node", "cluster_node", "faces", "session", "config"},
    {"simulator"},
    {"testing"},
    {"cli"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WIRING = {"node", "cluster_node", "faces", "session", "config"}    # files of one room that has no folder
LOWEST = {("_core", "errors")}                 # kernels raise the errors everybody knows


def may_import(importer: str, imported: str) -> bool:
    if importer == imported or {importer, imported} <= WIRING or (importer, imported) in LOWEST:
        return True
    return FLOOR_OF[imported] < FLOOR_OF[importer]


def test_every_room_has_a_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}

    assert rooms - {"__init__", "__pycache__"} <= FLOOR_OF.keys()


def test_imports_go_strictly_down():
    wrong = []
    for source in sources():
        for name, line in source.imports:
            parts = name.split(".")
            if parts[0] != "streamkit" or not source.room:
                continue
            if len(parts) == 1 or parts[1] not in FLOOR_OF:
                if parts[1:] != ["__version__"] and source.room != "cli":
                    wrong.append(f"{source.path}:{line} imports {name}: import from the room that defines it")
            elif not may_import(source.room, parts[1]):
                wrong.append(f"{source.path}:{line} {source.room} must not import {parts[1]}")

    assert wrong == []


def test_the_package_itself_loads_its_rooms_on_first_use():
    source = next(source for source in sources() if source.module == "streamkit")
    eager = [node for node in source.tree().body if type(node).__name__ in {"Import", "ImportFrom"}]

    assert [node.module for node in eager] == ["__future__", "typing"]
