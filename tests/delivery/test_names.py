"""Names of objects: what templates mean, and that the same chunk has one name."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from streamkit.delivery.names import Template
from streamkit.errors import InvalidUse
from tests.delivery.batches import batch_of

OLDEST = datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC)      # a second before Berlin's clocks go on


@pytest.mark.parametrize(
    ("text", "zone", "name"),
    [
        ("", "UTC", ""),
        ("orders/", "UTC", "orders/"),
        ("{arrived}", "UTC", "2026/03/29/00/"),
        ("o/{arrived:%Y-%m-%d}/", "UTC", "o/2026-03-29/"),
        ("{arrived:%H}", "Europe/Berlin", "01"),
        ("{arrived:%d}", "America/New_York", "28"),
        ("{stream}/{shard}/{delivery}/", "UTC", "orders/shardId-000000000000/lake/"),
        ("{{x}}/{arrived:%j}", "UTC", "{x}/088"),
        ("week={arrived:%G-%V}/", "UTC", "week=2026-13/"),
    ],
)
def test_a_template_and_what_it_becomes(text, zone, name):
    template = Template(text, zone=zone)

    assert not template.is_parting
    assert template.fill((), OLDEST, stream="orders", shard="shardId-000000000000", delivery="lake") == name


@pytest.mark.parametrize(
    ("text", "value", "name"),
    [
        ("c={data.country}/", {"country": "DE"}, "c=DE/"),
        ("{data.a.b}-{data.n}/", {"a": {"b": "x"}, "n": 5}, "x-5/"),
        ("{data.f}", {"f": True}, "true"),
        ("{key}/", {}, "k0/"),
        ("{data.path}/", {"path": "../../etc"}, ".._.._etc/"),
        ("{data.long}/", {"long": "ä" * 300}, "ä" * 100 + "/"),
    ],
)
def test_records_part_a_range_by_their_values(text, value, name):
    template = Template(text)
    record = batch_of([value])[0]

    part = template.part_of(record, record.value)

    assert template.is_parting
    assert template.fill(part, OLDEST, stream="s", shard="h", delivery="d") == name


@pytest.mark.parametrize("value", [{}, {"x": None}, {"x": ""}, {"x": [1]}, [1], None])
def test_a_record_without_the_field_has_no_name(value):
    record = batch_of([value])[0]
    with pytest.raises(Exception, match=r"data\.x"):
        Template("{data.x}/").part_of(record, value)


@pytest.mark.parametrize(
    "text", ["{", "{}", "{nothing}", "{data}", "{data.}", "{stream:x}", "{arrived!r}", "{key.x}", "{0}"]
)
def test_what_is_no_template_is_refused(text):
    with pytest.raises(InvalidUse):
        Template(text)


def test_a_zone_that_does_not_exist_is_refused():
    with pytest.raises(InvalidUse, match="time zone"):
        Template("x", zone="Europe/Atlantis")
