"""A node's configuration: one frozen value, put together once from file, environment and flags.

    defaults  <  TOML file  <  STREAMKIT_SECTION__KEY  <  flags

Every key is typed and checked; what is unknown or impossible is refused with file, line, key and the nearest
name that exists. `effective` tells where each value came from, `explain` what a key means: both are data for the
command line. Read `KEYS`, then `compose`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import msgspec

from streamkit.errors import InvalidConfig, StreamkitError
from streamkit.model import limits
from streamkit.model.stream import Durability, StreamConfig
from streamkit.runtime.interfaces import Disk

_MIB = 1024 * 1024
_FILE_BYTES_MAX = _MIB
PLACES = ("streamkit.toml", "/etc/streamkit/streamkit.toml")      # looked at when nothing else is said


def _key(default: Any, what: str, low: float | None = None, high: float | None = None) -> Any:
    """A setting with what `config explain` tells: its meaning, unit and range."""
    return field(default=default, metadata={"what": what, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSection:
    """This process."""

    name: str = _key("", "The node's name in logs and answers; empty: the first letters of its identity.")
    dev: bool = _key(False, "Development: streams are made on first use, logs are coloured text.")
    drain_seconds: int = _key(30, "How long a stop waits for what is under way.", 0, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeListener:
    """The native protocol: producers, consumers, the command line."""

    port: int = _key(7440, "Port of the native protocol; 0: any free one.", 0, 65535)
    connections_max: int = _key(10_000, "Connections at once; more are turned away.", 1, 1_000_000)
    greeting_seconds: float = _key(10.0, "A connection that has not greeted by then is closed.", 0.01, 3600)
    frame_seconds: float = _key(60.0, "A frame that has not arrived whole by then ends its connection.", 0.01, 3600)
    idle_seconds: float = _key(900.0, "A connection without requests is closed after this; 0: never.", 0, 86400)
    unacknowledged_bytes_max: int = _key(
        16 * _MIB, "Puts of one connection that wait for the disk; above it, reading stops.", 64 * 1024, 1 << 40
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthListener:
    """/live, /ready, /health and /metrics, for probes and scrapers."""

    enabled: bool = _key(True, "Whether to listen at all.")
    port: int = _key(7445, "Port of the health listener; 0: any free one.", 0, 65535)
    connections_max: int = _key(100, "Connections at once.", 1, 100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFace:
    """The Kinesis API, and the tables and metrics that its client library wants, over HTTP/1.1 and HTTP/2."""

    enabled: bool = _key(True, "Whether to listen at all.")
    port: int = _key(7441, "Port of the Kinesis API; 0: any free one.", 0, 65535)
    connections_max: int = _key(2_000, "Connections at once.", 1, 100_000)
    buffered_bytes_max: int = _key(
        256 * _MIB, "Request bodies in memory over all connections, and as much again of answers that nobody takes.",
        16 * _MIB, 1 << 40,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpsFace:
    """The same over TLS, on a port of its own; opened when there is a certificate."""

    host: str = _key("", "Host of this listener alone; empty: listen.host. With keys it may be one that others reach.")
    port: int = _key(7443, "Port of the Kinesis API over TLS; 0: any free one.", 0, 65535)
    certificate_file: str = _key("", "PEM file of the certificate, with those above it; empty: no TLS listener.")
    key_file: str = _key("", "PEM file of its key.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerListener:
    """The other nodes of a cluster; not opened without one."""

    port: int = _key(7442, "Port where the other nodes of the cluster connect; 0: any free one.", 0, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSection:
    """Where the node answers."""

    host: str = _key("127.0.0.1", "Host of every listener, or unix:/path for the native one alone.")
    advertised: str = _key("", "Host that clients and other nodes are told; empty: listen.host.")
    accept_insecure: bool = _key(False, "Allow a host that others reach without TLS and login; always announced.")
    native: NativeListener = field(default_factory=NativeListener)
    health: HealthListener = field(default_factory=HealthListener)
    http: HttpFace = field(default_factory=HttpFace)
    https: HttpsFace = field(default_factory=HttpsFace)
    peer: PeerListener = field(default_factory=PeerListener)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSection:
    """What lies on disk, and what of it in memory."""

    data_dir: str = _key("", "The data directory; empty: where the command line puts it for this user.")
    segment_bytes: int = _key(64 * _MIB, "Size at which a segment file is sealed and the next begins.", _MIB, 1 << 32)
    tail_bytes_max: int = _key(
        64 * _MIB, "Newest records kept in memory over all shards, for readers that keep up.", _MIB, 1 << 40
    )
    free_bytes_min: int = _key(1024 * _MIB, "Free space below which puts are refused; reads go on.", 0, 1 << 50)
    memory_bytes_max: int = _key(
        256 * _MIB, "What may wait in memory over all connections, put and fetched.", _MIB, 1 << 40
    )
    retention_check_seconds: int = _key(30, "How often expired segments are looked for.", 1, 86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamsSection:
    """Defaults for new streams, and how many there may be."""

    auto_create: bool = _key(False, "Create a stream when it is first asked for.")
    shards: int = _key(1, "Shards of a stream that is created on first use.", 1, limits.STREAM_SHARDS_MAX)
    retention_hours: int = _key(
        limits.RETENTION_HOURS_DEFAULT, "How long such a stream keeps records.",
        limits.RETENTION_HOURS_MIN, limits.RETENTION_HOURS_MAX,
    )
    record_bytes_max: int = _key(
        limits.RECORD_BYTES_MAX_DEFAULT, "Largest record of such a stream.", 1, limits.RECORD_BYTES_MAX
    )
    durability: Durability = _key(  # noqa: RUF009 - as the other keys
        Durability.FSYNC, "What an acknowledgement means: fsync, os or leader."
    )
    shards_max: int = _key(10_000, "Shards on this node, over all streams.", 1, 1_000_000)

    def new_stream(self) -> StreamConfig:
        return StreamConfig(
            shards=self.shards, retention_hours=self.retention_hours, record_bytes_max=self.record_bytes_max,
            durability=self.durability,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationsSection:
    """Workers that share shards."""

    tick_ms: int = _key(200, "How often members and leases are looked at, while there are any.", 10, 10_000)
    membership_seconds_max: int = _key(60, "Longest time a silent worker may keep its leases.", 1, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSection:
    """Certificates for etcd; a certificate authority alone is enough to encrypt."""

    ca_file: str = _key("", "PEM file of the authority that signed etcd's certificate; empty: no TLS.")
    certificate_file: str = _key("", "PEM file of this node's own certificate; empty: etcd asks for none.")
    key_file: str = _key("", "PEM file of the key of that certificate.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSection:
    """Several nodes that keep copies of each other's shards."""

    url: str = _key(
        "", "Where the nodes agree: etcd://host:port[,host:port][/prefix] or sqlite:///path; empty: one node, one copy."
    )
    zone: str = _key("", "What this node shares its fate with, as a rack or a room; copies lie in different ones.")
    replicas: int = _key(3, "Copies of each shard of a new stream.", 1, limits.REPLICAS_MAX)
    accept_fewer: bool = _key(False, "Create streams with fewer copies while there are fewer nodes.")
    protocol_max: int = _key(
        0, "Newest version of the nodes' protocol to speak, while some are older; 0: the newest known.", 0, 1_000
    )
    suspect_ms: int = _key(
        1_500, "A leader that was silent for so long is replaced; one that is surely gone, at once.", 100, 60_000
    )
    scrub_bytes_per_second: int = _key(
        4 * _MIB, "How fast stored segments are read again and checked; 0: never.", 0, 1 << 40
    )
    catch_up_bytes_per_second: int = _key(
        64 * _MIB, "How fast copies that are behind are filled, over all shards of a node.", 64 * 1024, 1 << 40
    )
    etcd: EtcdSection = field(default_factory=EtcdSection)


@dataclass(frozen=True, slots=True, kw_only=True)
class KinesisSection:
    """The Kinesis API."""

    account: str = _key("000000000000", "Account whose streams carry their own names; twelve digits.")
    region: str = _key("us-east-1", "Region whose streams carry their own names.")
    keys_file: str = _key("", "TOML file of access keys; empty: any key pair is taken, and only on this machine.")
    origins: str = _key("", "Web origins whose pages may call without keys, with blanks between; http://localhost:3000.")
    retention_hours: int = _key(
        24, "How long a stream made through this API keeps records.",
        limits.RETENTION_HOURS_MIN, limits.RETENTION_HOURS_MAX,
    )
    limits: str = _key("off", "off, or aws: the throttles that AWS has; a stream's tag streamkit:limits goes first.")
    put_throttle: float = _key(0.0, "This share of puts is refused as throttled, to try out retries.", 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsSection:
    """Log lines."""

    level: str = _key("info", "debug, info, warning or error.")
    format: str = _key("auto", "text, json, or auto: text on a terminal, else json.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSection:
    """Numbers for a metrics server."""

    enabled: bool = _key(True, "GET /metrics on the health listener.")
    per_shard_max: int = _key(1_000, "Above this many shards, shard labels are left out.", 0, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    node: NodeSection = field(default_factory=NodeSection)
    listen: ListenSection = field(default_factory=ListenSection)
    storage: StorageSection = field(default_factory=StorageSection)
    streams: StreamsSection = field(default_factory=StreamsSection)
    applications: ApplicationsSection = field(default_factory=ApplicationsSection)
    cluster: ClusterSection = field(default_factory=ClusterSection)
    kinesis: KinesisSection = field(default_factory=KinesisSection)
    logs: LogsSection = field(default_factory=LogsSection)
    metrics: MetricsSection = field(default_factory=MetricsSection)


@dataclass(frozen=True, slots=True)
class Key:
    """One setting. name: dotted, as in `streams.retention_hours`."""

    name: str
    kind: type
    default: Any
    what: str
    low: float | None
    high: float | None

    @property
    def environment(self) -> str:
        return "STREAMKIT_" + self.name.replace(".", "__").upper()


@dataclass(frozen=True, slots=True)
class Setting:
    """A key's effective value. source: "default", a file with its line, an environment variable, or "flag"."""

    key: Key
    value: Any
    source: str


def _keys_of(section: Any, prefix: str) -> dict[str, Key]:
    found: dict[str, Key] = {}
    for one in fields(section):
        name = f"{prefix}{one.name}"
        if isinstance(one.default_factory, type) and is_dataclass(one.default_factory):
            found |= _keys_of(one.default_factory, name + ".")
        else:
            meta = one.metadata
            found[name] = Key(name, type(one.default), one.default, meta["what"], meta["low"], meta["high"])
    return found


KEYS: dict[str, Key] = _keys_of(Config, "")
_SECTIONS = sorted({name.rpartition(".")[0] for name in KEYS} | {name.split(".")[0] for name in KEYS})
_CHOICES = {
    "kinesis.limits": ("off", "aws"), "logs.level": ("debug", "info", "warning", "error"),
    "logs.format": ("auto", "text", "json"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Composed:
    """config: the value to run with. settings: every key with its source, for `config show`."""

    config: Config
    settings: dict[str, Setting]
    file: str


def compose(
    text: str = "", *, file: str = "", environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Composed:
    """text: of the TOML file, named `file`. flags: by dotted key; None is not given. Raises InvalidConfig."""
    given: dict[str, tuple[Any, str]] = {}
    for name, value, line in _from_toml(text, file):
        given[name] = (_checked(name, value, file=file, line=line, text=False), f"{file} line {line}")
    for variable, raw in sorted((environment or {}).items()):
        if variable.startswith("STREAMKIT_") and "__" in variable:
            name = variable.removeprefix("STREAMKIT_").replace("__", ".").lower()
            if name not in KEYS:
                raise _unknown(name, f"environment variable {variable}", file="", line=0)
            given[name] = (_checked(name, raw, file=f"environment variable {variable}", line=0, text=True), variable)
    for name, flag in (flags or {}).items():
        assert name in KEYS, f"a flag sets a key that exists, not {name}"
        if flag is not None:
            given[name] = (_checked(name, flag, file="the command line", line=0, text=isinstance(flag, str)), "flag")
    if given.get("node.dev", (False,))[0] and "streams.auto_create" not in given:
        given["streams.auto_create"] = (True, "node.dev")
    settings = {
        name: Setting(key, *given.get(name, (key.default, "default"))) for name, key in KEYS.items()
    }
    config: Config = _build(Config, settings, "")
    _check_cluster(config)
    return Composed(config, settings, file)


def load(
    disk: Disk, *, path: str | None = None, environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Composed:
    """From `path`, else STREAMKIT_CONFIG, else the first of PLACES, else from no file. Raises InvalidConfig."""
    environment = environment or {}
    named = path or environment.get("STREAMKIT_CONFIG", "")
    found = named or next((place for place in PLACES if disk.exists(place)), "")
    if not found:
        return compose(environment=environment, flags=flags)
    try:
        file = disk.open(found)
        try:
            data = file.read(_FILE_BYTES_MAX + 1, 0)
        finally:
            file.close()
        text = data.decode()
    except (OSError, ValueError, StreamkitError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidConfig(
            f"{found} cannot be read: {reason.lower()}", try_="name a readable TOML file with --config",
            file=found, line=0, key="", value="",
        ) from error
    if len(data) > _FILE_BYTES_MAX:
        raise InvalidConfig(
            f"{found} has more than {_FILE_BYTES_MAX} bytes", try_="name the configuration file with --config",
            file=found, line=0, key="", value="",
        )
    return compose(text, file=found, environment=environment, flags=flags)


def explain(name: str) -> Key:
    """What a key means. Raises InvalidConfig with the nearest key."""
    if name not in KEYS:
        raise _unknown(name, "the configuration", file="", line=0)
    return KEYS[name]


def keys_of(section: str) -> list[Key]:
    """The keys below `section`, in the order of the file; empty when there is no such section."""
    return [key for name, key in KEYS.items() if section in _SECTIONS and name.startswith(section + ".")]


def default_toml() -> str:
    """A configuration file with every key at its default, and what it means."""
    lines: list[str] = []
    section = None
    for key in KEYS.values():
        here, _, name = key.name.rpartition(".")
        if here != section:
            section = here
            lines += ["", f"[{here}]"] if lines else [f"[{here}]"]
        value = str(key.default) if isinstance(key.default, str) else key.default
        lines.append(f"{name} = {msgspec.json.encode(value).decode():<24} # {key.what}")
    return "\n".join(lines) + "\n"


# -- where nodes agree -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """kind: "etcd" with hosts ("host:port") and prefix ("streamkit" when the url has none), or "sqlite" with path."""

    kind: str
    hosts: tuple[str, ...] = ()
    prefix: str = ""
    path: str = ""


def parse_cluster_url(url: str) -> ClusterUrl:
    """Raises ValueError that says what a url must look like; `compose` has checked cluster.url already."""
    if path := url.removeprefix("sqlite://") if url.startswith("sqlite://") else "":
        if not path.startswith("/") or path.endswith("/"):
            raise ValueError("must name a file with its whole path, as sqlite:///var/lib/streamkit/cluster.sqlite")
        return ClusterUrl("sqlite", path=path)
    if not url.startswith("etcd://"):
        raise ValueError("must begin with etcd:// or sqlite:///")
    listed, _, prefix = url.removeprefix("etcd://").partition("/")
    hosts = tuple(listed.split(","))
    for host in hosts:
        if not re.fullmatch(r"([\w.-]+|\[[\da-fA-F:]+\]):\d{1,5}", host):
            raise ValueError(f"must list host:port, separated by commas, and not {host[:60]!r}")
    prefix = prefix.strip("/") or "streamkit"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", prefix):
        raise ValueError(f"has a prefix of letters, digits, dots and dashes, and not {prefix[:60]!r}")
    return ClusterUrl("etcd", hosts=hosts, prefix=prefix)


def _check_cluster(config: Config) -> None:
    """What no single key shows. Raises InvalidConfig."""
    cluster, etcd = config.cluster, config.cluster.etcd
    wrong = ""
    if cluster.url and not config.node.name:
        wrong, key, step = "a node of a cluster needs a name that stays its own", "node.name", "add --node-id NAME"
    elif cluster.url and config.listen.host.startswith("unix:"):
        wrong, key = "the nodes of a cluster reach each other over a network, not a socket file", "listen.host"
        step = "--listen 127.0.0.1"
    elif cluster.url and config.listen.host in ("0.0.0.0", "::") and not config.listen.advertised:
        wrong, key = f"nobody can reach a node at {config.listen.host}", "listen.advertised"
        step = "set listen.advertised to the host that clients and other nodes reach this node by"
    elif bool(etcd.certificate_file) != bool(etcd.key_file):
        wrong, key = "a certificate and its key are named together", "cluster.etcd.key_file"
        step = "set cluster.etcd.certificate_file and cluster.etcd.key_file"
    elif etcd.certificate_file and not etcd.ca_file:
        wrong, key = "a certificate of ours needs the authority of the other side", "cluster.etcd.ca_file"
        step = "set cluster.etcd.ca_file"
    if wrong:
        raise InvalidConfig(wrong, try_=step, file="", line=0, key=key, value="")


def _cluster_url_wrong(url: str) -> str:
    try:
        parse_cluster_url(url)
    except ValueError as error:
        return f"{error}, got {url[:80]!r}"
    return ""


def _name_wrong(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        return ""
    return f"must be up to 63 letters, digits, dots, dashes and underscores, first a letter or digit, got {name!r}"


# What is more than a type and a range: the name of a key → a function that says what is wrong, "" for nothing.
_FORMS = {"cluster.url": _cluster_url_wrong, "node.name": _name_wrong, "cluster.zone": _name_wrong}


# -- reading ---------------------------------------------------------------------------------------------------


def _from_toml(text: str, file: str) -> list[tuple[str, Any, int]]:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        line = int(place[1]) if place else text.count("\n") + 1
        why = re.sub(r" \(at .*\)$", "", str(error)).lower()
        raise InvalidConfig(
            f"{file} line {line}: {why}", try_="correct the line; the file is TOML",
            file=file, line=line, key="", value="",
        ) from error
    found: list[tuple[str, Any, int]] = []
    _walk(tree, "", found, _lines(text), file)
    return found


def _walk(
    tree: dict[str, Any], prefix: str, found: list[tuple[str, Any, int]], lines: dict[str, int], file: str
) -> None:
    for part, value in tree.items():
        name = prefix + part
        line = lines.get(name, 0)
        if isinstance(value, dict) and name in _SECTIONS:
            _walk(value, name + ".", found, lines, file)
        elif name in KEYS:
            found.append((name, value, line))
        elif name in _SECTIONS:
            raise InvalidConfig(
                f"{_where(file, line)}{name} is a section, not a value", try_=f"write [{name}] and its keys below",
                file=file, line=line, key=name, value=str(value)[:80],
            )
        else:
            raise _unknown(name, "", file=file, line=line)


def _lines(text: str) -> dict[str, int]:
    """Where each section and key stands, as far as it is written the usual way; only messages depend on it."""
    found: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if heading := re.match(r"\s*\[\s*([\w.\s\"-]+?)\s*\]", line):
            section = re.sub(r"[\s\"]", "", heading[1]) + "."
            found.setdefault(section[:-1], number)
        elif setting := re.match(r"\s*([\w.\s\"-]+?)\s*=", line):
            found.setdefault(section + re.sub(r"[\s\"]", "", setting[1]), number)
    return found


def _where(file: str, line: int) -> str:
    return f"{file} line {line}: " if file and line else f"{file}: " if file else ""


def _unknown(name: str, source: str, *, file: str, line: int) -> InvalidConfig:
    section, _, last = name.rpartition(".")
    if section in _SECTIONS or (not section and name not in _SECTIONS):
        siblings = [key.rpartition(".")[2] for key in KEYS if key.rpartition(".")[0] == section]
        siblings += [part.split(".")[-1] for part in _SECTIONS if part.rpartition(".")[0] == section]
        near = next(iter(difflib.get_close_matches(last, siblings, n=1)), None)
        what = f'[{section}] has no "{last}"' if section else f'there is no section "{last}"'
    else:
        near = next(iter(difflib.get_close_matches(section, _SECTIONS, n=1)), None)
        what = f'there is no section "{section}"'
    full = (f"{section}.{near}" if section in _SECTIONS else near) if near else None
    if full is None and (there := next((key for key in KEYS if last in key.rpartition(".")[2]), None)) is not None:
        near = full = there                            # the right word, without its section
    place = _where(file, line) or (f"{source}: " if source else "")
    return InvalidConfig(
        place + what + (f"; did you mean {near}?" if near else ""),
        try_=f"streamkit config explain {full}" if full else "streamkit config default",
        file=file, line=line, key=name, value="",
    )


def _checked(name: str, value: Any, *, file: str, line: int, text: bool) -> Any:
    """The value in its type and range; `text`: it was written as text, as environment variables are."""
    key = KEYS[name]

    def wrong(why: str) -> InvalidConfig:
        return InvalidConfig(
            f"{_where(file, line)}{name} {why}", try_=f"streamkit config explain {name}",
            file=file, line=line, key=name, value=str(value)[:80],
        )

    try:
        made: Any = msgspec.convert(value, key.kind, strict=not text)
    except msgspec.ValidationError as error:
        if key.kind is Durability:
            raise wrong(f"must be one of {', '.join(Durability)}, got {value!r}") from error
        raise wrong(f"must be {_spoken(key.kind)}, got {value!r}") from error
    if name in _CHOICES and made not in _CHOICES[name]:
        raise wrong(f"must be one of {', '.join(_CHOICES[name])}, got {made!r}")
    if name in _FORMS and made and (why := _FORMS[name](made)):
        raise wrong(why)
    if key.low is not None and key.high is not None and not key.low <= made <= key.high:
        raise wrong(f"must be {key.low}..{key.high}, got {made}")
    return made


def _spoken(kind: type) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, kind.__name__)


def _build(section: Any, settings: Mapping[str, Setting], prefix: str) -> Any:
    values: dict[str, Any] = {}
    for one in fields(section):
        name = f"{prefix}{one.name}"
        if name in settings:
            values[one.name] = settings[name].value
        else:
            values[one.name] = _build(one.default_factory, settings, name + ".")
    return section(**values)
