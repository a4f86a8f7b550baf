"""The one operation that is served. Its other members than these are ignored."""

from __future__ import annotations

from streamkit.gateway.shapes import Boolean, Double, Integer, Model, String, Timestamp, choice, text

OPERATIONS: dict[str, tuple[str, str]] = {
    "PutMetricData": (
        "Namespace! MetricData:[MetricDatum]0..1000 EntityMetricData:[EntityMetricData]0..2 "
        "StrictEntityValidation:Boolean",
        "",
    ),
}
STRUCTURES: dict[str, str] = {
    "Dimension": "Name!:DimensionName Value!:DimensionValue",
    "EntityMetricData": "MetricData:[MetricDatum]0..1000",
    "MetricDatum": (
        "MetricName! Dimensions:[Dimension]0..30 Timestamp Value:Number StatisticValues:StatisticSet "
        "Values:[Number]0..150 Counts:[Number]0..150 Unit StorageResolution"
    ),
    "StatisticSet": "SampleCount!:Number Sum!:Number Minimum!:Number Maximum!:Number",
}
_SIZES = "Bytes Kilobytes Megabytes Gigabytes Terabytes Bits Kilobits Megabits Gigabits Terabits Count"
SCALARS: dict[str, String | Integer | Double | Boolean | Timestamp] = {
    "Boolean": Boolean(),
    "DimensionName": text(1, 255),
    "DimensionValue": text(1, 1024),
    "MetricName": text(1, 255),
    "Namespace": text(1, 255, r"[^:].*"),
    "Number": Double(),
    "StorageResolution": Integer(1),
    "Timestamp": Timestamp(),
    "Unit": choice(
        f"Seconds Microseconds Milliseconds Percent None {_SIZES} "
        + " ".join(f"{size}/Second" for size in _SIZES.split())
    ),
}
MODEL = Model(OPERATIONS, STRUCTURES, SCALARS)
