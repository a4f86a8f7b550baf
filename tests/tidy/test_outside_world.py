"""Only `runtime` meets the world; the rules do not even know asyncio."""

import ast

from tests.tidy.sources import kernel_sources, python_sources

WORLD = {
    "time", "random", "socket", "os", "threading", "subprocess", "secrets", "uuid", "select", "selectors", "pathlib",
    "signal", "multiprocessing", "concurrent", "tempfile", "shutil", "fcntl", "mmap", "ssl", "uvloop", "queue",
    "ctypes", "glob", "sqlite3", "urllib.request", "http.client", "_thread",
}
FREE = {"runtime", "cli"}
ALSO = {
    # module → what it may use, and why.
    "streamkit.metadata.sqlite_store": {"sqlite3"},            # the database is its own file system
    "streamkit.http.tls": {"ssl"},                             # contexts; connections are made of them by `runtime`
    # Futures and queues that carry results between threads; the threads themselves are started by `runtime`.
    "streamkit.consumer.checkpointer": {"concurrent"},
    "streamkit.consumer.consumer": {"concurrent", "queue"},
    "streamkit.consumer.running": {"concurrent"},
    "streamkit.consumer.stage": {"concurrent"},
    "streamkit.consumer.positions.sqlite": {"sqlite3"},        # as for the metadata
    "streamkit.delivery.chunk": {"uuid"},                      # names from names; nothing is drawn
    "streamkit.testing.node": {"time"},                        # tests wait for what real threads do
    "streamkit.simulator.network": {"random"},                 # seeded; one draw for each link
    "streamkit.simulator.disk": {"random"},
    "streamkit.simulator.cluster": {"random"},
    "streamkit.simulator.world": {"random"},
    "streamkit.simulator.faults": {"random"},
    "streamkit.simulator.workload": {"random"},
    "streamkit.simulator.producing": {"random"},
    "streamkit.simulator.copying": {"random"},
    "streamkit.simulator.operating": {"random"},
    "streamkit.simulator.summing": {"random"},
    "streamkit.simulator.relaying": {"random"},
    "streamkit.simulator.handling": {"random"},
    "streamkit.simulator.delivering": {"random"},
    "streamkit.simulator.nemesis": {"random"},
    "streamkit.simulator.aimed": {"random"},
    "streamkit.simulator.run": {"multiprocessing", "concurrent", "random", "time"},   # seeds are shared out
}
PURE = {"protocol", "replication", "leases", "security", "observability", "model"}
WORLD_CALLS = {
    "open", "input", "print", "create_connection", "create_server", "create_unix_server", "create_unix_connection",
    "open_connection", "start_server", "add_reader", "add_writer", "add_signal_handler", "create_subprocess_exec",
    "subprocess_exec", "to_thread",
}
CLOCK_CALLS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}


def world_module(name: str) -> str | None:
    for module in WORLD:
        if name == module or name.startswith(module + "."):
            return module
    return None


def test_only_the_runtime_imports_the_outside_world():
    wrong = []
    for source in python_sources():
        if source.room in FREE:
            continue
        allowed = ALSO.get(source.module, set())
        for name, line in source.imports:
            module = world_module(name)
            if module is not None and module not in allowed:
                wrong.append(f"{source.path}:{line} imports {module}")

    assert wrong == []


def test_rules_are_pure():
    wrong = [
        f"{source.path}:{line} imports {name}"
        for source in python_sources()
        if source.room in PURE
        for name, line in source.imports
        if name.split(".")[0] == "asyncio"
    ]

    assert wrong == []


def test_nobody_else_opens_files_sockets_or_reads_the_clock():
    wrong = []
    for source in python_sources():
        if source.room in FREE:
            continue
        for node in ast.walk(source.tree()):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            if isinstance(function, ast.Name) and function.id in WORLD_CALLS & {"open", "input", "print"}:
                wrong.append(f"{source.path}:{node.lineno} calls {function.id}()")
            if isinstance(function, ast.Attribute):
                if function.attr in WORLD_CALLS - {"open", "input", "print"}:
                    wrong.append(f"{source.path}:{node.lineno} calls {function.attr}()")
                if isinstance(function.value, ast.Name) and (function.value.id, function.attr) in CLOCK_CALLS:
                    wrong.append(f"{source.path}:{node.lineno} reads the clock")

    assert wrong == []


def test_kernels_import_no_python_that_meets_the_world():
    wrong = [
        f"{source.path}:{line} imports {name}"
        for source in kernel_sources()
        for name, line in source.imports
        if world_module(name) is not None
    ]

    assert wrong == []
