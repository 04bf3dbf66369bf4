"""What a URL says of Redis servers."""

from __future__ import annotations

import socket

import pytest
import redis

from asyncguard.backends.redis_url import RedisServer


def test_a_server_may_be_connected_to_as_often_as_it_takes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = RedisServer(f"redis://127.0.0.1:{port}/0")
    for _ in range(120):  # redis-py's pools make a hundred connections, whatever became of those before
        with pytest.raises(redis.ConnectionError, match="refused"):
            server.connect()
