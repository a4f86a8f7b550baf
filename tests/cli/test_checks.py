"""doctor, config, segment inspect: what looks without changing."""

import json

from tests.cli.conftest import run_command, start_serve


def test_doctor_finds_a_healthy_node(served, tmp_path):
    findings = served.json("doctor", "--data", str(tmp_path))

    assert {finding["level"] for finding in findings} <= {"ok", "warn"}
    assert any(finding["text"].startswith("node ") and "ready" in finding["text"] for finding in findings)
    assert any("sync" in finding["text"] and finding["text"].startswith("data directory") for finding in findings)
    assert served.run("doctor", "--ready").startswith("ok")


def test_doctor_fails_when_nothing_answers():
    done = run_command("doctor", "--ready", "--url", "streamkit://127.0.0.1:9")

    assert done.returncode == 1
    assert done.stdout.decode().startswith("fail  node: ")


def test_doctor_points_at_a_mistake_in_the_configuration(tmp_path):
    file = tmp_path / "streamkit.toml"
    file.write_text("[storage]\nsegment_byte = 5\n")
    done = run_command("doctor", "--config", str(file), "--data", str(tmp_path))

    assert done.returncode == 1
    assert "did you mean segment_bytes?" in done.stdout.decode()


def test_config_shows_where_each_value_came_from(tmp_path, monkeypatch):
    file = tmp_path / "streamkit.toml"
    file.write_text("[streams]\nshards = 3\n")
    monkeypatch.setenv("STREAMKIT_LOGS__LEVEL", "debug")
    done = run_command("config", "show", "--config", str(file), "--json")
    settings = {line["key"]: line for line in map(json.loads, done.stdout.splitlines())}

    assert settings["streams.shards"]["value"] == 3 and "line 2" in settings["streams.shards"]["source"]
    assert settings["logs.level"] | {"schema": 0} == {
        "schema": 0, "key": "logs.level", "value": "debug", "source": "STREAMKIT_LOGS__LEVEL"
    }  # fmt: skip
    assert settings["listen.native.port"]["source"] == "default"


def test_the_default_configuration_is_a_configuration(tmp_path):
    file = tmp_path / "streamkit.toml"
    file.write_bytes(run_command("config", "default").stdout)
    done = run_command("config", "show", "--config", str(file))

    assert done.returncode == 0
    assert b"listen.native.port" in done.stdout


def test_config_explain_gives_meaning_range_and_variable():
    shown = run_command("config", "explain", "streams.retention_hours").stdout.decode()

    assert "24 to 8760" in shown and "STREAMKIT_STREAMS__RETENTION_HOURS" in shown
    done = run_command("config", "explain", "streams.retension_hours")
    assert done.returncode == 2 and b"did you mean" in done.stderr


def test_a_segment_is_read_without_its_node_and_damage_is_found(tmp_path):
    node = start_serve(tmp_path / "data")
    node.run("stream", "create", "orders")
    node.run("put", "orders", "--lines", "--key", "k", stdin="".join(f"record {i}\n" for i in range(100)))
    node.process.terminate()
    node.process.wait(30)
    files = [file for file in (tmp_path / "data").rglob("*.log") if file.stat().st_size]
    found = []
    for file in files:
        done = run_command("segment", "inspect", str(file), "--json")
        assert done.returncode == 0, done.stderr
        found.append((file, [json.loads(line) for line in done.stdout.splitlines()]))
    file, lines = next((f, ls) for f, ls in found if ls[-1]["records"] == 100)
    table = run_command("segment", "inspect", str(file)).stdout.decode().splitlines()

    assert lines[-1]["schema"] == "streamkit.segment.v1" and not lines[-1]["damaged"]
    assert lines[-1]["checked_header_sums"]
    assert len(table) == 1 + lines[-1]["batches"] + 1

    data = bytearray(file.read_bytes())
    data[lines[-1]["position"] - 5] ^= 1
    broken = file.with_name(file.name.replace(".log", ".copy"))
    broken.write_bytes(data)
    done = run_command("segment", "inspect", str(broken), "--summary")
    assert done.returncode == 1
    assert "damaged at byte" in done.stdout.decode()
