"""What conditions mean: which values can be compared, three-valued logic, what is not decided, and whole batches."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from streamkit._core.conditions import NO_ROUTE
from streamkit.expressions.condition import Condition, Router
from tests.consumer.test_aggregates import aggregate
from tests.consumer.test_aggregates import batch_of as stored
from tests.expressions.records import batch_of, holds, undecided

ORDER = {
    "id": 7, "total": 42.5, "kind": "refund", "paid": True, "note": None, "big": 2**63 - 1,
    "items": [{"name": "pen", "sizes": [1, 2]}, {"name": "ink"}], "first name": "Ada", "order": {"from": "NO"},
}


@pytest.mark.parametrize(("text", "expected"), [
    ("data.total > 42", True),
    ("data.total = 42.5", True),
    ("data.id = 7.0", True),
    ("data.id <> 7", False),
    ("data.id != 8", True),
    ("data.kind = 'refund'", True),
    ("data.kind < 'rf'", True),
    ("data.kind = 'REFUND'", False),
    ("data.paid", True),
    ("data.paid = FALSE", False),
    ("NOT data.paid", False),
    ("data.items[0].name = 'pen'", True),
    ("data.items[0].sizes[1] = 2", True),
    ("data['first name'] = 'Ada'", True),
    ('data."first name" = \'Ada\'', True),
    ("data.order.from = 'NO'", True),
    ("data.kind IN ('order', 'refund')", True),
    ("data.id NOT IN (1, 2)", True),
    ("data.id BETWEEN 7 AND 8", True),
    ("data.id NOT BETWEEN 7 AND 8", False),
    ("data.note IS NULL", True),
    ("data.absent IS NULL", True),
    ("data.items[2] IS NULL", True),
    ("data.kind[0] IS NULL", True),
    ("data.id.deeper IS NULL", True),
    ("data.items IS NOT NULL", True),
    ("data.id * 2 + 1 = 15", True),
    ("data.id / 2 = 3", True),
    ("-data.id / 2 = -3", True),
    ("-data.id % 4 = -3", True),
    ("data.total / 2 = 21.25", True),
    ("data.total % 40 = 2.5", True),
    ("2 + 3 * 4 = 14 AND (2 + 3) * 4 = 20", True),
    ("data.kind LIKE 'ref%'", True),
    ("data.kind LIKE '%fun%'", True),
    ("data.kind LIKE '_efun_'", True),
    ("data.kind LIKE '%e_u%d'", True),
    ("data.kind LIKE 'fun%'", False),
    ("data.kind NOT LIKE '%x%'", True),
    ("data.kind LIKE 'refund_'", False),
    ("'10%' LIKE '10!%' ESCAPE '!'", True),
    ("'100' LIKE '10!%' ESCAPE '!'", False),
    ("'a_b' LIKE '%!_%' ESCAPE '!'", True),
    ("key = 'k'", True),
    ("size > 10 AND size < 1000", True),
    ("arrived = '2023-11-14T22:13:20Z'", True),
    ("arrived > TIMESTAMP '2023-11-14 22:13:19' AND arrived < '2023-11-15'", True),
    ("arrived = '2023-11-14T23:13:20+01:00'", True),
    ("headers.tenant IS NULL", True),
    ("data.big = 9223372036854775807", True),
    ("TRUE OR FALSE AND FALSE", True),
    ("data.id = 7 -- a remark\n AND /* another */ data.paid", True),
])
def test_a_condition_on_a_json_record(text: str, expected: bool) -> None:
    assert holds(text, ORDER) is expected


@pytest.mark.parametrize("text", [
    "data.absent = 1", "data.note = NULL", "NULL", "data.id = '7'", "data.paid = 1", "data.kind = 3", "data.items = 1",
    "data.order = data.order", "data.id IN (1, NULL)", "NULL IN (1)", "data.absent LIKE '%'", "data.id LIKE '7'",
    "data.absent BETWEEN 1 AND 2", "data.id BETWEEN 7 AND NULL", "data.absent + 1 = 2", "data.kind + 1 = 2",
    "-data.kind = 1", "data.kind", "data.id", "data.kind AND TRUE", "data.total > arrived", "arrived < data.kind",
])
def test_what_has_no_answer_matches_neither_way(text: str) -> None:
    assert holds(text, ORDER) is None
    assert undecided(text, ORDER) == 0


def test_unknown_and_false_is_false_unknown_or_true_is_true() -> None:
    assert holds("data.absent = 1 AND data.id = 8", ORDER) is False
    assert holds("data.absent = 1 OR data.id = 7", ORDER) is True
    assert holds("data.absent = 1 AND data.id = 7", ORDER) is None
    assert holds("NOT (data.absent = 1)", ORDER) is None
    assert holds("data.id BETWEEN 9 AND data.absent", ORDER) is False
    assert holds("data.id IN (data.absent, 7)", ORDER) is True


def test_headers_are_text_and_what_is_none_is_null() -> None:
    headers = {"tenant": b"acme", "content-type": b"json", "raw": b"\xff"}

    assert holds("headers.tenant = 'acme'", {}, headers=headers) is True
    assert holds("headers['content-type'] LIKE 'j%'", {}, headers=headers) is True
    assert holds("headers.raw IS NULL", {}, headers=headers) is True


def test_event_time_is_the_producers_else_the_arrival() -> None:
    assert holds("time = '2020-01-01'", {}, time_ms=1_577_836_800_000) is True
    assert holds("time = arrived", {}) is True
    assert holds("data.at > time", {"at": "2024-05-05T00:00:00Z"}) is True
    assert holds("data.at > time", {"at": "yesterday"}) is None


def test_a_payload_is_read_as_its_header_or_its_codec_says() -> None:
    packed = msgspec.msgpack.encode({"a": 1})

    assert holds("data.a = 1", packed, headers={"content-type": b"msgpack"}) is True
    assert holds("data.a = 1", packed, codec="msgpack") is True
    assert holds("data = 'plain'", b"plain", codec="text") is True
    assert holds("data = 'plain'", b"plain", codec="bytes") is True
    assert holds("data = 'plain'", b"plain", headers={"content-type": b"text/plain"}) is True


@pytest.mark.parametrize(("text", "value", "options"), [
    ("data.a = 1", b"{no json", {}),
    ("data.a IS NULL", b"{no json", {}),
    ("key = 'k' OR data.a = 1", b"\xff\xff", {}),
    ("data = 'x'", b"\xff", {"codec": "text"}),
    ("data.n / 0 = 1", {"n": 1}, {}),
    ("data.n % data.z = 1", {"n": 1.5, "z": 0}, {}),
    ("data.n + 1 > 0", {"n": 2**63 - 1}, {}),
    ("data.n * data.n > 0", {"n": 2**40}, {}),
    ("-data.n > 0", {"n": -(2**63)}, {}),
])
def test_what_cannot_be_decided_does_not_match_and_is_counted(text: str, value: Any, options: dict[str, Any]) -> None:
    assert undecided(text, value, **options) == 1
    assert len(Condition(text, **options).matching(batch_of(value))) == 0


def test_a_record_whose_payload_cannot_be_decoded_is_judged_by_what_is_not_its_payload() -> None:
    assert holds("key = 'k'", b"{no json") is True
    assert undecided("key = 'k'", b"{no json") == 0


def test_hostile_patterns_take_a_bounded_number_of_steps() -> None:
    text = "a" * 200_000

    assert undecided("data.x LIKE '%" + "_a" * 200 + "b%'", {"x": text}) == 1
    assert holds("data.x LIKE '%" + "a%" * 200 + "b%'", {"x": text}) is False


class Cunning(int):
    def __lt__(self, other: object) -> bool:
        raise AssertionError("nobody calls this")

    __gt__ = __eq__ = __lt__               # type: ignore[assignment]
    __hash__ = int.__hash__


def test_objects_of_a_codec_are_looked_into_only_where_they_are_plain_values() -> None:
    class Codec:
        name = "cunning"

        def encode(self, value: Any) -> bytes:
            return b""

        def decode(self, data: bytes) -> Any:
            return {"n": Cunning(1), "real": 1}

    condition = Condition("data.n = 1 OR data.n < 2 OR data.__class__ IS NOT NULL", Codec())

    assert len(condition.matching(batch_of({}))) == 0
    assert len(Condition("data.real = 1", Codec()).matching(batch_of({}))) == 1


# ---- batches ---------------------------------------------------------------------------------------------


def test_what_is_left_out_is_passed_over() -> None:
    batch = batch_of(*({"n": n} for n in range(10)), base=100)
    even = Condition("data.n % 2 = 0").matching(batch)
    none = Condition("data.n > 10").matching(batch)

    assert [record.sequence for record in even] == [100, 102, 104, 106, 108]
    assert [record.value["n"] for record in even] == [0, 2, 4, 6, 8]
    assert [even.place(done)[0] for done in range(6)] == [100, 102, 104, 106, 108, 110]
    assert (even.first_sequence, even.end_sequence) == (100, 110)
    assert (len(none), none.first_sequence, none.end_sequence) == (0, 110, 110)
    assert Condition("data.n >= 0").matching(batch) is batch


def test_a_chosen_batch_is_cut_and_chosen_from_again() -> None:
    batch = batch_of(*({"n": n} for n in range(12)), base=50)
    third = Condition("data.n % 3 = 0").matching(batch.part(1, 12))
    part = third.part(0, 2)

    assert [record.value["n"] for record in third] == [3, 6, 9]
    assert ([record.value["n"] for record in part], part.end_sequence) == ([3, 6], 59)
    assert [record.value["n"] for record in Condition("data.n > 3").matching(part)] == [6]
    assert third.keys() == ["k"] * 3
    assert third.to_arrow().column("sequence").to_pylist() == [53, 56, 59]
    assert third.index_of(third[1]) == 1


def test_user_records_of_an_aggregate_are_judged_one_by_one() -> None:
    given = stored(b"9", aggregate(1, 2, 3), base=0).unwrap()
    chosen = Condition("data <> 2").matching(given)

    assert [record.json() for record in given] == [9, 1, 2, 3]
    assert [(record.sequence, record.sub_sequence) for record in chosen] == [(0, None), (1, 0), (1, 2)]
    assert [chosen.place(done) for done in range(4)] == [(0, 0), (1, 0), (1, 2), (2, 0)]


def test_the_first_condition_that_holds_takes_a_record() -> None:
    router = Router([Condition("data.n = 1"), None, Condition("data.n < 3")])
    batch = batch_of({"n": 1}, {"n": 2}, {"n": 5}, b"{no json")

    assert list(router.routes(batch)) == [0, 2, 1, 1]
    assert router.undecided == 1
    assert list(Router([Condition("data.n = 1")]).routes(batch)) == [0, NO_ROUTE, NO_ROUTE, NO_ROUTE]


def test_a_batch_is_chosen_from_with_one_byte_a_record() -> None:
    with pytest.raises(ValueError, match="3 bytes for 2 records"):
        batch_of(1, 2).chosen(b"\0\0\0")


def test_the_grammar_is_loaded_when_a_condition_is_parsed_and_not_before() -> None:
    program = (
        "import sys, streamkit; from streamkit import Consumer, Reader\n"
        "Consumer('s', application='a', start='latest'); Reader('s', start='latest')\n"
        "assert 'sqlglot' not in sys.modules\n"
        "Reader('s', start='latest', where='data.a = 1')\n"
        "assert 'sqlglot' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
