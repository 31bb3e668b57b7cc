"""A real Docker engine for a test, from which everything that the test started is removed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from docker_engine import Engine, need_docker


@pytest.fixture
def engine(own_state: None) -> Iterator[Engine]:
    engine = Engine(need_docker())
    yield engine
    for name in engine.ours():
        engine.api.remove_container(name, force=True, v=True)


@pytest.fixture
def network(engine: Engine) -> Iterator[str]:
    """The name of a network that does not exist yet; it is removed with the containers on it."""
    name = f"tao_test_{uuid.uuid4().hex[:8]}"
    yield name
    for name_on_it in engine.ours():
        engine.api.remove_container(name_on_it, force=True)
    for found in engine.api.networks(names=[name]):
        engine.api.remove_network(found["Id"])
