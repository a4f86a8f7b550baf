"""A node for each module of these tests."""

from __future__ import annotations

import pytest

from tests.examples.nodes import KinesisNode


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with KinesisNode(tmp_path_factory.mktemp("node")) as node:
        yield node
