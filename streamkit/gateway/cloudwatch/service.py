"""PutMetricData: checked as far as its reporters would want to know of a mistake, then into the registry."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from streamkit.gateway.calls import Call, Service
from streamkit.gateway.cloudwatch.model import MODEL
from streamkit.gateway.cloudwatch.registry import Registry, SeriesName, Statistics
from streamkit.gateway.errors import ApiError
from streamkit.runtime.interfaces import Clock

TARGET = "GraniteServiceVersion20100801"
NAMESPACE = "http://monitoring.amazonaws.com/doc/2010-08-01/"
_DATA_MAX = 1_000
_MAGNITUDE_MAX = 2.0**360


def _invalid(message: str) -> ApiError:
    return ApiError("InvalidParameterValueException", message)


def open_cloudwatch(clock: Clock, registry: Registry) -> Service:
    """The service that fills `registry`, which stays the caller's to show."""

    async def put_metric_data(call: Call) -> None:
        # All is checked before any of it counts.
        for name, statistics, time_ms in _reports(call, clock.now_ms()):
            registry.put(name, statistics, time_ms)

    return Service(
        target=TARGET,
        signing_name="monitoring",
        model=MODEL,
        operations={"PutMetricData": put_metric_data},
        json_version="1.0",
        rpc=True,
        query_namespace=NAMESPACE,
    )


def _reports(call: Call, now_ms: int) -> list[tuple[SeriesName, Statistics, int]]:
    """Raises ApiError."""
    data = [("metricData", datum) for datum in call.params.get("MetricData", ())]
    for at, entity in enumerate(call.params.get("EntityMetricData", ()), 1):
        path = f"entityMetricData.{at}.member.metricData"
        data += [(path, datum) for datum in (entity or {}).get("MetricData", ())]
    if not data:
        raise ApiError("MissingRequiredParameterException", "The parameter MetricData is required.")
    if len(data) > _DATA_MAX:
        raise _invalid(f"The collection MetricData must not have a size greater than {_DATA_MAX}.")
    found: list[tuple[SeriesName, Statistics, int]] = []
    for at, (path, datum) in enumerate(data, 1):
        where = f"{path}.{at}.member"
        if datum is None:
            raise _invalid(f"The parameter {where} must not be null.")
        name = SeriesName(
            call.caller.account, call.caller.region, call.params["Namespace"], datum["MetricName"],
            _dimensions(datum.get("Dimensions", ()), where), datum.get("Unit", "None"),
        )  # fmt: skip
        found.append((name, _statistics(datum, where), datum.get("Timestamp", now_ms)))
    return found


def _dimensions(given: Iterable[dict[str, str] | None], where: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for dimension in given:
        if dimension is None or dimension["Name"] in found:
            raise _invalid(f"The dimensions of {where} must be there, and differ in their names.")
        found[dimension["Name"]] = dimension["Value"]
    return tuple(sorted(found.items()))


def _statistics(datum: dict[str, Any], where: str) -> Statistics:
    given = [member for member in ("Value", "Values", "StatisticValues") if member in datum]
    if not given:
        raise ApiError(
            "MissingRequiredParameterException",
            f"At least one of the parameters Value, Values and StatisticValues of {where} must be specified.",
        )
    if len(given) > 1:
        raise ApiError(
            "InvalidParameterCombinationException", f"The parameters {', '.join(given)} of {where} exclude each other."
        )
    if "Value" in datum:
        value = _number(datum["Value"], where)
        return Statistics(1.0, value, value, value)
    if "StatisticValues" in datum:
        members = datum["StatisticValues"]
        count, total, low, high = (_number(members[key], where) for key in ("SampleCount", "Sum", "Minimum", "Maximum"))
        if count < 0 or low > high:
            raise _invalid(f"The statistics of {where} contradict each other.")
        return Statistics(count, total, low, high)
    values = [_number(each, where) for each in datum["Values"]]
    counts = [_number(each, where) for each in datum.get("Counts", [1.0] * len(values))]
    if not values or len(values) != len(counts) or min(counts) < 0:
        raise _invalid(f"The parameters Values and Counts of {where} must be of the same length, and not empty.")
    total = math.fsum(value * count for value, count in zip(values, counts, strict=True))
    return Statistics(math.fsum(counts), total, min(values), max(values))


def _number(value: float | None, where: str) -> float:
    if value is None or not math.isfinite(value) or abs(value) > _MAGNITUDE_MAX:
        raise _invalid(f"The value {value} of {where} is outside the numbers that a metric may have.")
    return value
