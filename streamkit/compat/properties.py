"""The MultiLangDaemon's properties file, as settings of a Worker.

What has a meaning here is taken; what belongs to Amazon's service (regions, endpoints, credentials, metrics, the lease
table's capacity …) is known and means nothing; anything else is told to the caller, who warns of it once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from streamkit.errors import InvalidConfig

_PAIR = re.compile(r"((?:\\.|[^\\\s=:])*)\s*[=:]?\s*(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}

# Known to the KCL, without a meaning here: our leases have no table, our fetches no pauses, our metrics no CloudWatch.
_MEANINGLESS = {
    "processinglanguage", "regionname", "idletimebetweenreadsinmillis", "shardsyncintervalmillis",
    "callprocessrecordsevenforemptyrecordlist", "parentshardpollintervalmillis", "cleanupleasesuponshardcompletion",
    "taskbackofftimemillis", "validatesequencenumberbeforecheckpointing", "maxactivethreads", "retrievalmode",
    "kinesisendpoint", "dynamodbendpoint", "useragent", "tablename", "failovertimemillisforrebalance",
    "initialleasetablereadcapacity", "initialleasetablewritecapacity", "maxleasestostealatonetime",
    "maxleaserenewalthreads", "billingmode", "skipshardsyncatworkerinitializationifleasesexist", "kclversion",
    "logwarningfortaskaftermillis", "listshardsbackofftimemillis", "maxlistshardsretryattempts",
    "workermetricsreporterfreqinmillis", "inmemoryworkermetricscapturefrequencymillis", "fanoutconfig",
    "ignoreunexpectedchildshards", "gracefulleasehandofftimeoutmillis", "isgracefulleasehandoffenabled",
    "consumerarn", "consumername", "maxgetrecordsthreadpool", "dataFetchingStrategy".lower(), "clientversionconfig",
    "dampeningpercentage", "reassignmentconcurrency", "varianceratio",
}  # fmt: skip
_MEANINGLESS_STARTS = (
    "metrics", "awscredentialsprovider", "awscredentials", "kinesiscredentialsprovider", "dynamodbcredentialsprovider",
    "cloudwatchcredentialsprovider", "kinesisclient.", "dynamodbclient.", "cloudwatchclient.", "cloudwatch",
    "leasetable", "workerutilization", "workermetrics", "coordinatorstate",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    """None: the file says nothing about it. unknown: its keys that mean nothing to anybody."""

    stream: str | None = None
    application: str | None = None
    command: tuple[str, ...] | None = None
    start: str | datetime | None = None
    worker: str | None = None
    membership_ms: int | None = None
    batch_records_max: int | None = None
    leases_max: int | None = None
    timeout_s: float | None = None
    grace_s: float | None = None
    unknown: tuple[str, ...] = field(default=())


def parse_properties(text: str) -> dict[str, str]:
    """Java's format: comments, continued lines, escapes; of a key that comes twice the last counts."""
    found: dict[str, str] = {}
    whole = ""
    for raw in text.splitlines():
        line = raw.lstrip()
        if not whole and (not line or line[0] in "#!"):
            continue
        continued = (len(line) - len(line.rstrip("\\"))) % 2 == 1
        whole += line[:-1] if continued else line
        if continued:
            continue
        match = _PAIR.match(whole)
        assert match is not None, "every part of the pattern may be empty"
        found[_unescaped(match[1])] = _unescaped(match[2]).strip()
        whole = ""
    return found


def _unescaped(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        said = match[1]
        return chr(int(said[1:], 16)) if len(said) == 5 else _ESCAPED.get(said, said)

    return _ESCAPE.sub(one, text)


def daemon_settings(properties: Mapping[str, str], file: str = "") -> DaemonSettings:
    """Names are taken in any case, as the KCL does. Raises InvalidConfig."""
    said = {name.lower(): (name, value) for name, value in properties.items() if value != ""}

    def text(*names: str) -> str | None:
        return next((said[name][1] for name in names if name in said), None)

    def whole(name: str, least: int = 1) -> int | None:
        if name not in said:
            return None
        shown, value = said[name]
        if not value.isascii() or not value.isdigit() or int(value) < least:
            raise _wrong(file, shown, value, f"a whole number of at least {least}")
        return int(value)

    arn = text("streamarn")
    failover_ms = whole("failovertimemillis")
    timeout = whole("timeoutinseconds", 0)
    grace_ms = whole("shutdowngracemillis", 0)
    executable = text("executablename")
    return DaemonSettings(
        stream=arn.rpartition("/")[2] if arn else text("streamname"),
        application=text("applicationname"),
        command=tuple(executable.split()) if executable else None,
        start=_start(file, text("initialpositioninstream"), text("initialpositioninstreamextended")),
        worker=text("workerid", "workeridentifier"),
        membership_ms=min(60_000, max(1_000, failover_ms)) if failover_ms is not None else None,
        batch_records_max=whole("maxrecords"),
        leases_max=whole("maxleasesforworker"),
        timeout_s=float(timeout) if timeout else None,
        grace_s=grace_ms / 1000 if grace_ms is not None else None,
        unknown=tuple(name for name in properties if not _is_known(name.lower())),
    )  # fmt: skip


_MEANINGFUL = {
    "streamarn", "streamname", "applicationname", "executablename", "initialpositioninstream",
    "initialpositioninstreamextended", "workerid", "workeridentifier", "failovertimemillis", "maxrecords",
    "maxleasesforworker", "timeoutinseconds", "shutdowngracemillis",
}  # fmt: skip


def _is_known(name: str) -> bool:
    return name in _MEANINGFUL or name in _MEANINGLESS or name.startswith(_MEANINGLESS_STARTS)


def _start(file: str, named: str | None, extended: str | None) -> str | datetime | None:
    if named is None and extended is None:
        return None
    kind = (named or "AT_TIMESTAMP").upper()
    if kind in ("TRIM_HORIZON", "LATEST"):
        return kind.lower()
    if kind != "AT_TIMESTAMP":
        raise _wrong(file, "initialPositionInStream", named or "", "TRIM_HORIZON, LATEST or AT_TIMESTAMP")
    try:
        return datetime.fromtimestamp(float(extended or ""), UTC)
    except (ValueError, OverflowError, OSError) as cause:
        raise _wrong(
            file, "initialPositionInStreamExtended", extended or "", "a time in seconds since 1970, for AT_TIMESTAMP"
        ) from cause


def _wrong(file: str, key: str, value: str, wanted: str) -> InvalidConfig:
    return InvalidConfig(
        f"{key} must be {wanted}; {file or 'the file'} says {value!r}", try_=f"correct {key} in {file or 'it'}",
        file=file, line=0, key=key, value=value,
    )
