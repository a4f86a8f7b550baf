"""Configuration: later sources win, and whatever is wrong is named with its place and the nearest right name."""

import tomllib

import pytest

from streamkit.config import KEYS, Config, compose, default_toml, explain
from streamkit.errors import InvalidConfig
from streamkit.model.stream import Durability


def refused(text="", **sources):
    with pytest.raises(InvalidConfig) as caught:
        compose(text, file="streamkit.toml", **sources)
    return str(caught.value), caught.value.try_, caught.value.facts


def test_nothing_said_is_the_defaults():
    assert compose().config == Config()


def test_the_default_file_says_every_key_and_changes_nothing():
    composed = compose(default_toml(), file="default.toml")

    assert composed.config == Config()
    assert all(setting.source.startswith("default.toml line ") for setting in composed.settings.values())


def test_flags_beat_the_environment_beats_the_file():
    composed = compose(
        "[listen.native]\nport = 1\n[streams]\nshards = 2\nretention_hours = 24\n", file="f.toml",
        environment={"STREAMKIT_STREAMS__SHARDS": "3", "STREAMKIT_LISTEN__NATIVE__PORT": "2", "STREAMKIT_URL": "x"},
        flags={"listen.native.port": 3, "storage.data_dir": None},
    )

    assert composed.config.listen.native.port == 3
    assert composed.config.streams.shards == 3
    assert composed.config.streams.retention_hours == 24
    sources = {name: composed.settings[name].source for name in ("listen.native.port", "streams.shards")}
    assert sources == {"listen.native.port": "flag", "streams.shards": "STREAMKIT_STREAMS__SHARDS"}
    assert composed.settings["streams.retention_hours"].source == "f.toml line 5"


def test_dev_makes_streams_on_first_use_unless_told_otherwise():
    assert compose(flags={"node.dev": True}).config.streams.auto_create
    assert not compose("[streams]\nauto_create = false", flags={"node.dev": True}).config.streams.auto_create


def test_an_unknown_key_names_file_line_and_the_nearest_key():
    message, next_step, facts = refused("[node]\n\n[streams]\nretension_hours = 3\n")

    assert message == 'streamkit.toml line 4: [streams] has no "retension_hours"; did you mean retention_hours?'
    assert next_step == "streamkit config explain streams.retention_hours"
    assert facts["line"] == 4


def test_an_unknown_section_is_named():
    assert 'there is no section "storge"; did you mean storage?' in refused("[storge]\ndata_dir = 'x'\n")[0]
    assert 'no section "zzz"' in refused(environment={"STREAMKIT_ZZZ__A": "1"})[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[listen.native]\nport = 70000", "line 2: listen.native.port must be 0..65535, got 70000"),
        ("[listen.native]\nport = '7440'", "listen.native.port must be a whole number, got '7440'"),
        ("[node]\ndev = 1", "node.dev must be true or false, got 1"),
        ("[streams]\ndurability = 'maybe'", "must be one of fsync, os, leader"),
        ("[logs]\nlevel = 'loud'", "must be one of debug, info"),
        ("listen = 3", "listen is a section, not a value"),
        ("[node\nname = 1", "line 1"),
        ("[node]\nname = 'a'\nname = 'b'", "line 3"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(text, words):
    assert words in refused(text)[0]


def test_an_environment_value_is_read_in_its_type():
    environment = {"STREAMKIT_NODE__DEV": "true", "STREAMKIT_STREAMS__DURABILITY": "os"}
    config = compose(environment=environment).config

    assert config.node.dev is True
    assert config.streams.durability is Durability.OS
    message = refused(environment={"STREAMKIT_NODE__DRAIN_SECONDS": "soon"})[0]
    assert message.startswith("environment variable STREAMKIT_NODE__DRAIN_SECONDS: node.drain_seconds must be")


def test_every_key_explains_itself():
    for name, key in KEYS.items():
        assert explain(name).what.endswith("."), name
        assert key.environment.startswith("STREAMKIT_")
    with pytest.raises(InvalidConfig, match="did you mean retention_hours"):
        explain("streams.retension_hours")
    assert set(tomllib.loads(default_toml())) == {name.split(".")[0] for name in KEYS}
