"""The HTTP faces of a node: who may call, over which listener, and what is told of it."""

import asyncio
from functools import partial

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from streamkit.errors import InvalidConfig, UnsafeListener
from tests.broker.conftest import connect, start
from tests.examples.nodes import certificate

__all__ = ["connect", "start"]               # fixtures
HTTP = {"listen__http__enabled": True, "listen__http__port": 0}
KEYS = """
[[key]]
id = "AKIDWRITER"
secret = "sesame"
account = "123456789012"
permissions = ["read", "write"]

[[key]]
id = "AKIDADMIN"
secret = "open"
account = "123456789012"
"""


def kinesis(url, key="any", secret="any", **options):
    return boto3.client(
        "kinesis", endpoint_url=url, region_name="us-east-1", aws_access_key_id=key, aws_secret_access_key=secret,
        config=Config(retries={"max_attempts": 1}), **options,
    )  # fmt: skip


async def call(work, *arguments, **named):
    return await asyncio.get_running_loop().run_in_executor(None, partial(work, *arguments, **named))


async def post(address, headers):
    """Status of a ListStreams with these headers beside those that it needs."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    signed = "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/kinesis/aws4_request, SignedHeaders=host, Signature="
    told = {
        "host": address, "x-amz-target": "Kinesis_20131202.ListStreams", "x-amz-date": "20260101T000000Z",
        "content-type": "application/x-amz-json-1.1", "authorization": signed + "0" * 64, "connection": "close",
        "content-length": "2", **headers,
    }  # fmt: skip
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    writer.write(f"POST / HTTP/1.1\r\n{lines}\r\n{{}}".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def test_boto3_and_the_library_see_the_same_stream(start, connect):
    node = await start(**HTTP)
    client, native = kinesis(f"http://{node.addresses.http}"), await connect(node)
    await call(client.create_stream, StreamName="orders", ShardCount=2)

    assert len((await native.describe_stream("orders")).shards) == 2
    assert (await native.describe_stream("orders")).config.retention_hours == 24


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"host": "evil.example"}, 421), ({"origin": "https://evil.example"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403), ({"origin": "http://localhost:3000"}, 200),
])  # fmt: skip
async def test_pages_of_others_get_nothing_from_an_open_node(start, headers, status):
    node = await start(**HTTP, kinesis__origins="http://localhost:3000")

    assert await post(node.addresses.http, headers) == status


async def test_with_keys_each_signature_counts(start, tmp_path):
    (tmp_path / "keys.toml").write_text(KEYS)
    node = await start(**HTTP, kinesis__keys_file=str(tmp_path / "keys.toml"))
    url = f"http://{node.addresses.http}"
    await call(kinesis(url, "AKIDADMIN", "open").create_stream, StreamName="orders", ShardCount=1)
    writer = kinesis(url, "AKIDWRITER", "sesame")
    summary = await call(writer.describe_stream_summary, StreamName="orders")
    await call(writer.put_record, StreamName="orders", Data=b"one", PartitionKey="k")

    assert summary["StreamDescriptionSummary"]["StreamARN"] == "arn:aws:kinesis:us-east-1:123456789012:stream/orders"
    refused = {}
    for name, client, work in (
        ("InvalidSignatureException", kinesis(url, "AKIDWRITER", "wrong"), "list_streams"),
        ("UnrecognizedClientException", kinesis(url, "AKIDNOBODY", "sesame"), "list_streams"),
    ):
        with pytest.raises(ClientError) as error:
            await call(getattr(client, work))
        refused[name] = error.value.response["Error"]["Code"]
    with pytest.raises(ClientError, match="admin"):
        await call(writer.delete_stream, StreamName="orders")
    assert all(name == code for name, code in refused.items())
    assert await post(node.addresses.http, {"origin": "https://a.example"}) == 400      # the signature is what counts


async def test_over_tls_and_with_keys_the_node_may_be_reached_from_elsewhere(start, tmp_path):
    file, key = certificate(tmp_path)
    (tmp_path / "keys.toml").write_text(KEYS)
    tls = {
        "listen__https__port": 0, "listen__https__certificate_file": str(file), "listen__https__key_file": str(key),
        "kinesis__keys_file": str(tmp_path / "keys.toml"),
    }  # fmt: skip
    node = await start(**tls, listen__https__host="0.0.0.0")
    port = node.addresses.https.rpartition(":")[2]
    client = kinesis(f"https://127.0.0.1:{port}", "AKIDADMIN", "open", verify=str(file))
    assert (await call(client.list_streams))["StreamNames"] == []

    for open_to_others in (
        tls | {"listen__https__host": "0.0.0.0", "kinesis__keys_file": ""}, {**HTTP, "listen__host": "0.0.0.0"}
    ):
        with pytest.raises(UnsafeListener):
            await start("other", **open_to_others)


@pytest.mark.parametrize("text", ["[[key]]\nid = 'a'\n", "not toml", "[[key]]\nid = ''\nsecret = 's'\n",
                                  "[[key]]\nid = 'a'\nsecret = 's'\npermissions = ['all']\n"])  # fmt: skip
async def test_a_file_of_keys_that_makes_no_sense_stops_the_start(start, tmp_path, text):
    (tmp_path / "keys.toml").write_text(text)

    with pytest.raises(InvalidConfig):
        await start(**HTTP, kinesis__keys_file=str(tmp_path / "keys.toml"))


async def test_what_was_answered_is_counted(start):
    node = await start(**HTTP, listen__health__enabled=True)
    client = kinesis(f"http://{node.addresses.http}")
    await call(client.list_streams)
    with pytest.raises(ClientError):
        await call(client.describe_stream, StreamName="none")
    reader, writer = await asyncio.open_connection(*node.addresses.health.split(":"))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    metrics = (await reader.read()).decode()
    writer.close()

    assert 'streamkit_http_requests_total{code="ok",listener="http",operation="ListStreams"} 1.0' in metrics
    assert 'code="ResourceNotFoundException",listener="http",operation="DescribeStream"} 1.0' in metrics
