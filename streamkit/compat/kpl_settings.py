"""The KPL's configuration, as settings of a Producer: what has a meaning here, and what is known and has none."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from streamkit.compat.properties import parse_properties
from streamkit.errors import InvalidConfig
from streamkit.runtime import environment

_log = logging.getLogger("streamkit.compat")

# name → (setting of Producer, least and most that the KPL takes, most that we take)
_NUMBERS: dict[str, tuple[str, int, int, int]] = {
    "RecordMaxBufferedTime": ("linger_ms", 0, 1 << 62, 60_000),
    "RecordTtl": ("delivery_timeout_ms", 100, 1 << 62, 1 << 31),
    "RequestTimeout": ("request_timeout_ms", 100, 600_000, 600_000),
    "CollectionMaxSize": ("batch_bytes_max", 52_224, 5_242_880, 1 << 20),
    "MaxUserRecordSize": ("", 64, 10_485_760, 10_485_760),
    "UserRecordTimeoutInMillis": ("", 0, 1 << 62, 1 << 31),
}
_SWITCHES = ("FailIfThrottled", "ReturnUserRecordOnFailure")
# Known to the KPL, without a meaning here: batches make aggregation pointless, a node says itself what is too much, one
# connection carries all, and there is neither a child process nor a cloud.
_MEANINGLESS = (
    "AggregationEnabled", "AggregationMaxCount", "AggregationMaxSize", "CloudwatchEndpoint", "CloudwatchPort",
    "CollectionMaxCount", "ConnectTimeout", "CredentialsRefreshDelay", "DaemonHealthCheckTimeoutMs", "EnableCoreDumps",
    "EnableDaemonHealthCheck", "EnableOldestFutureTracker", "KinesisEndpoint", "KinesisPort", "LogLevel",
    "MaxConnections", "MetricsGranularity", "MetricsLevel", "MetricsNamespace", "MetricsUploadDelay",
    "MinConnections", "NativeExecutable", "ProxyHost", "ProxyPassword", "ProxyPort", "ProxyUserName", "RateLimit",
    "Region", "StsEndpoint", "StsPort", "TempDirectory", "ThreadPoolSize", "ThreadingModel", "VerifyCertificate",
    "CaCertPath", "CaCertFile",
)  # fmt: skip
_BY_PLAIN = {name.lower(): name for name in (*_NUMBERS, *_SWITCHES, *_MEANINGLESS)}


@dataclass(frozen=True, slots=True)
class KplSettings:
    """producer: arguments for Producer. ignored: keys that have no meaning here."""

    producer: Mapping[str, Any]
    record_bytes_max: int = 1_048_576
    return_records: bool = False
    ignored: tuple[str, ...] = ()


class NamesFile(Protocol):
    """What pathlib's paths are."""

    def __fspath__(self) -> str: ...


def read_kpl_properties(path: str | NamesFile) -> dict[str, str]:
    """A KPL properties file. Raises InvalidConfig when it cannot be read."""
    try:
        return parse_properties(environment.file_text(str(path)))
    except (OSError, UnicodeDecodeError) as cause:
        raise InvalidConfig(f"{path} cannot be read: {cause}", try_="name a KPL properties file", key=str(path),
                            value=None) from cause  # fmt: skip


def kpl_settings(said: Mapping[str, object]) -> KplSettings:
    """Keys in any case, with or without underscores. Keys without a meaning are told in one log line.

    Raises InvalidConfig: an unknown key (with the nearest known one), or a value that the KPL would refuse.
    """
    found: dict[str, Any] = {}
    ignored = []
    for shown, value in said.items():
        plain = shown.replace("_", "").lower()
        name = _BY_PLAIN.get(plain)
        if name is None:
            near = difflib.get_close_matches(plain, _BY_PLAIN, 1, 0.0)[0]
            raise InvalidConfig(f"{shown} is no key of the KPL", try_=f"did you mean {_BY_PLAIN[near]}?", key=shown,
                                value=value)  # fmt: skip
        if name in _NUMBERS:
            found[name] = _number(name, value)
        elif name in _SWITCHES:
            found[name] = _switch(name, value)
        else:
            ignored.append(name)
    if ignored:
        _log.warning("kpl.ignored keys=%s", ",".join(sorted(ignored)))
    producer = {_NUMBERS[name][0]: min(value, _NUMBERS[name][3])
                for name, value in found.items() if name in _NUMBERS and _NUMBERS[name][0]}  # fmt: skip
    producer["delivery_timeout_ms"] = producer.get("delivery_timeout_ms", 30_000)      # the KPL's, a quarter of ours
    if timeout_ms := found.get("UserRecordTimeoutInMillis"):
        producer["delivery_timeout_ms"] = min(producer["delivery_timeout_ms"], timeout_ms)
    producer["fail_if_throttled"] = found.get("FailIfThrottled", False)
    return KplSettings(
        producer, found.get("MaxUserRecordSize", 1_048_576), found.get("ReturnUserRecordOnFailure", False),
        tuple(sorted(ignored)),
    )  # fmt: skip


def _number(name: str, value: object) -> int:
    _, low, high, _ = _NUMBERS[name]
    text = str(value).strip()
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
        upper = f" and at most {high}" if high < 1 << 62 else ""
        raise InvalidConfig(f"{name} must be a whole number of at least {low}{upper}, got {value!r}",
                            try_=f"choose {name} in that range", key=name, value=value)  # fmt: skip
    return int(text)


def _switch(name: str, value: object) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise InvalidConfig(f"{name} must be true or false, got {value!r}", try_=f"set {name} to true or false",
                            key=name, value=value)  # fmt: skip
    return text == "true"
