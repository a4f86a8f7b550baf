from tests.end_to_end import kill_broker


async def test_nothing_acknowledged_is_lost_when_the_broker_is_killed(tmp_path):
    outcome = await kill_broker.run(5, tmp_path / "data", producers=2)

    assert outcome.wrong() == []
    assert outcome.kills == 5
    assert len(outcome.acknowledged) == outcome.put > 100
