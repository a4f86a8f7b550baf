"""A commit whose answer did not come, or not a plain one: nothing is believed that the coordinator did not say."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from streamkit.errors import (
    LimitReached,
    OutcomeUnknown,
    ProducerFenced,
    StreamkitError,
    Throttled,
    TimedOut,
    TransactionAborted,
)
from streamkit.producer.transaction import Writer
from streamkit.protocol.messages import OutputsCommitted


class Coordinator:
    """Gives these answers, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self.runtime = SimpleNamespace(random=SimpleNamespace(uniform=lambda: 0.0, bits=lambda count: 1))
        self._answers = list(answers)

    async def call(self, message: Any) -> Any:
        answer = self._answers.pop(0)
        if isinstance(answer, StreamkitError):
            raise answer
        return answer


def writer(*answers: Any) -> Writer:
    """One that is in doubt about the transaction before."""
    made = Writer(Coordinator(*answers), None, None)  # type: ignore[arg-type]
    made._open, made._number, made._doubt = True, 1, object()  # type: ignore[assignment]
    return made


async def test_a_refusal_while_a_doubt_is_settled_leaves_the_doubt() -> None:
    asking = writer(Throttled("later", retry_after_ms=1))
    with pytest.raises(OutcomeUnknown):
        await asking.begin()
    assert asking._doubt is not None


@pytest.mark.parametrize("lost_before", [True, False])
async def test_a_refusal_ends_a_commit_unless_an_earlier_try_may_be_decided(lost_before: bool) -> None:
    lost = [TimedOut("lost", sent=True)] if lost_before else []
    asking = writer(*lost, LimitReached("full", limit=1))
    deadline_s = asyncio.get_running_loop().time() + 5
    if lost_before:
        assert await asking._asked_until(deadline_s, 1, b"data") is None
    else:
        with pytest.raises(LimitReached):
            await asking._asked_until(deadline_s, 1, b"data")
    assert (asking._doubt is not None) == lost_before


async def test_an_error_that_may_come_after_the_decision_is_settled() -> None:
    asking = writer(StreamkitError("the log failed"))
    assert await asking._asked_until(asyncio.get_running_loop().time() + 5, 1, b"data") is None
    assert asking._doubt is not None


async def test_a_transaction_that_turns_out_void_is_not_in_the_next_ones_way() -> None:
    asking = writer(OutputsCommitted("void", None))
    await asking.begin()
    assert asking._doubt is None


async def test_the_time_of_a_transaction_counts_what_it_waits_for() -> None:
    """The one before is not in its shards yet, and nothing may overtake it."""
    asking = writer()
    asking._doubt, asking._carrying = None, asyncio.create_task(asyncio.Event().wait())  # type: ignore[assignment]
    with pytest.raises(TransactionAborted):
        await asyncio.wait_for(asking.commit(None, 0.01, 1.0), 5)  # type: ignore[arg-type]
    assert asking._carrying is not None and not asking._carrying.done()
    asking._carrying.cancel()


async def test_the_next_transaction_of_a_producer_that_was_shut_out_is_told_so() -> None:
    with pytest.raises(ProducerFenced):
        await writer(OutputsCommitted("fenced", None)).begin()
