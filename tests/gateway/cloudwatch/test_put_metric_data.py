"""PutMetricData as its clients send it: boto3's CBOR, JSON 1.0, the old form; plain and gzipped."""

import datetime as dt
import gzip
import json
import urllib.error
import urllib.request

import pytest
from botocore.exceptions import ClientError

from streamkit.gateway.cloudwatch import Registry, open_cloudwatch
from streamkit.gateway.cloudwatch.registry import SeriesName
from streamkit.runtime.real import real_runtime
from tests.gateway.dynamodb.face import serving

AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=AK/20261123/us-east-1/monitoring/aws4_request, SignedHeaders=host;x-amz-date, "
    f"Signature={'0' * 64}"
)
SHARD = [{"Name": "Operation", "Value": "ProcessTask"}, {"Name": "ShardId", "Value": "shardId-000000000000"}]


@pytest.fixture(scope="module")
def registry():
    return Registry()


@pytest.fixture(scope="module")
def face(tmp_path_factory, registry):
    directory = str(tmp_path_factory.mktemp("node") / "data")
    with serving(directory, lambda client: [open_cloudwatch(real_runtime().clock, registry)]) as made:
        yield made


@pytest.fixture(scope="module")
def cloudwatch(face):
    return face.boto("cloudwatch")


def post(face, body, content_type, **headers):
    asked = urllib.request.Request(f"http://{face.address}/", body, {
        "content-type": content_type, "x-amz-date": dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ"),
        "authorization": AUTHORIZATION, **{name.replace("_", "-"): value for name, value in headers.items()},
    })  # fmt: skip
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return answer.status, answer.read()


def held(registry, namespace, metric, *dimensions, unit="None"):
    return registry.get(SeriesName("000000000000", "us-east-1", namespace, metric, dimensions, unit))


@pytest.mark.parametrize("size", [1, 20, 900])
def test_what_boto3_reports_is_held(cloudwatch, registry, size):
    """The larger ones are compressed by the client."""
    cloudwatch.put_metric_data(Namespace=f"app-{size}", MetricData=[
        {
            "MetricName": f"m{i}", "Dimensions": SHARD, "Unit": "Milliseconds", "Timestamp": dt.datetime.now(dt.UTC),
            "StatisticValues": {"SampleCount": 2, "Sum": 3.5, "Minimum": 1.0, "Maximum": 2.5},
        }
        for i in range(size)
    ])  # fmt: skip

    dimensions = (("Operation", "ProcessTask"), ("ShardId", "shardId-000000000000"))
    series = held(registry, f"app-{size}", f"m{size - 1}", *dimensions, unit="Milliseconds")
    assert (series.last.mean, series.last.maximum, series.count) == (1.75, 2.5, 2.0)


def test_values_with_counts(cloudwatch, registry):
    cloudwatch.put_metric_data(Namespace="app", MetricData=[
        {"MetricName": "sizes", "Values": [1.0, 10.0], "Counts": [3.0, 1.0]}, {"MetricName": "one", "Value": -4.0},
    ])  # fmt: skip

    assert held(registry, "app", "sizes").last.mean == 3.25
    assert held(registry, "app", "one").last.sum == -4.0


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_json_1_0(face, registry, packed):
    body = json.dumps({
        "Namespace": f"json-{packed}",
        "MetricData": [{"MetricName": "Lag", "Value": 7, "Unit": "Count", "Timestamp": 1763912345.5}],
    }).encode()  # fmt: skip
    status, _ = post(
        face, gzip.compress(body) if packed else body, "application/x-amz-json-1.0",
        x_amz_target="GraniteServiceVersion20100801.PutMetricData", **({"content_encoding": "gzip"} if packed else {}),
    )  # fmt: skip

    assert status == 200
    assert held(registry, f"json-{packed}", "Lag", unit="Count").time_ms == 1763912345500


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_the_form_of_older_clients(face, registry, packed):
    body = (
        f"Action=PutMetricData&Version=2010-08-01&Namespace=KinesisProducerLibrary-{packed}"
        "&MetricData.member.1.MetricName=UserRecordsPut&MetricData.member.1.StatisticValues.SampleCount=2"
        "&MetricData.member.1.StatisticValues.Sum=5&MetricData.member.1.StatisticValues.Minimum=1"
        "&MetricData.member.1.StatisticValues.Maximum=4&MetricData.member.1.Unit=Count"
        "&MetricData.member.1.Dimensions.member.1.Name=StreamName"
        "&MetricData.member.1.Dimensions.member.1.Value=orders%20new"
    ).encode()
    status, answer = post(
        face, gzip.compress(body) if packed else body, "application/x-www-form-urlencoded; charset=utf-8",
        **({"content_encoding": "gzip"} if packed else {}),
    )  # fmt: skip

    assert status == 200 and b"<PutMetricDataResponse" in answer and b"<RequestId>" in answer
    series = held(
        registry, f"KinesisProducerLibrary-{packed}", "UserRecordsPut", ("StreamName", "orders new"), unit="Count"
    )
    assert series.last.sum == 5.0


@pytest.mark.parametrize(("datum", "code"), [
    ({}, "MissingParameter"),
    ({"Value": 1.0, "Values": [1.0]}, "InvalidParameterCombination"),
    ({"Values": [1.0], "Counts": [1.0, 2.0]}, "InvalidParameterValue"),
    ({"Value": 1e300}, "InvalidParameterValue"),
    ({"Value": float("nan")}, "SerializationException"),
    ({"StatisticValues": {"SampleCount": 1, "Sum": 1, "Minimum": 2, "Maximum": 1}}, "InvalidParameterValue"),
    ({"Value": 1.0, "Dimensions": [SHARD[0], SHARD[0]]}, "InvalidParameterValue"),
])  # fmt: skip
def test_a_report_that_makes_no_sense_is_refused_whole(cloudwatch, registry, datum, code):
    before = registry.reports
    with pytest.raises(ClientError) as raised:
        cloudwatch.put_metric_data(
            Namespace="app", MetricData=[{"MetricName": "good", "Value": 1.0}, {"MetricName": "m", **datum}]
        )

    assert code in raised.value.response["Error"]["Code"].replace("Required", "")
    assert registry.reports == before


def test_the_answer_of_a_form_that_makes_no_sense_is_xml(face):
    with pytest.raises(urllib.error.HTTPError) as raised:
        post(
            face, b"Action=PutMetricData&Namespace=app&MetricData.member.1.MetricName=m",
            "application/x-www-form-urlencoded",
        )  # fmt: skip
    assert raised.value.code == 400 and b"<Code>MissingRequiredParameter" in raised.value.read()


def test_regions_are_apart(face, registry):
    face.boto("cloudwatch", region="eu-west-1").put_metric_data(
        Namespace="regional", MetricData=[{"MetricName": "m", "Value": 1.0}]
    )

    assert held(registry, "regional", "m") is None
    assert registry.get(SeriesName("000000000000", "eu-west-1", "regional", "m")) is not None
