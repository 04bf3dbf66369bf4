"""What URLs say of Redis servers, and what is wrong with those that say nothing."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import redis

from asyncguard.backends import open_backend
from asyncguard.backends.redis_servers import open_servers
from asyncguard.backends.redis_url import RedisServer, RedisUrl
from asyncguard.clock import TICKS, SystemClock


def test_a_server_may_be_connected_to_as_often_as_it_takes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = RedisServer(f"redis://127.0.0.1:{port}/0")
    for _ in range(120):  # redis-py's pools make a hundred connections, whatever became of those before
        with pytest.raises(redis.ConnectionError, match="refused"):
            server.connect()


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://", ("redis", "localhost", 6379, 0)),
        ("valkeys://me:secret@Host:7000/3", ("redis", "host", 7000, 3)),
        ("redis+cluster://b:2,a/", ("redis+cluster", ("a", 6379), ("b", 2))),
        ("valkey+cluster://[::1]:7000,[::2]:7001/0", ("redis+cluster", ("::1", 7000), ("::2", 7001))),
        ("redis+sentinel://b,a:1/shop", ("redis+sentinel", "shop", 0, ("a", 1), ("b", 26379))),
        ("rediss+sentinel://u:p%40@a/shop%2F1/2", ("redis+sentinel", "shop/1", 2, ("a", 26379))),
    ],
)
def test_servers_that_are_the_same_have_the_same_place(url: str, place: Any) -> None:
    assert open_servers(url).place == place


def test_passwords_are_not_in_names_but_are_sent() -> None:
    for url in ("redis://u:p%40@a:1/0", "rediss+cluster://u:p%40@a,b/", "redis+sentinel://u:p%40@a,b/shop"):
        servers = open_servers(f"{url}?lease=5")
        assert "p%40" not in servers.name
        assert "@" not in servers.name
        assert servers.lease == 5 * TICKS
    login = RedisUrl("rediss+cluster://u:p%40@a,b/?ssl_check_hostname=false")._options
    assert (login["username"], login["password"], login["ssl_check_hostname"]) == ("u", "p@", False)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://a,b/0", "expected one server, .* several are redis.cluster://"),
        ("redis://a/shop/0", "expected one server"),
        ("redis://a/shop", "expected the number of a database .* got 'shop'"),
        ("redis+cluster://a/1", "without a path, as a cluster has one database, got 'redis.cluster://a/1'"),
        ("redis+cluster://a:x,b/", "expected hosts such as host:6379 or .* got 'a:x'"),
        ("redis+sentinel://a,b", "the service that they watch over, as in redis.sentinel://host:26379"),
        ("redis+sentinel://a/shop/first", "expected the number of a database .* got 'first'"),
        ("redis+sentinel://a/shop?sentinel=1", "unknown option 'sentinel'; known: .*sentinel_password"),
        ("redis+cluster://a?lease=1&timeout=1", "at least 5 times the timeout"),
        ("redis+swarm://a", r"no backend is known for the scheme 'redis\+swarm'.*redis\+cluster://"),
        ("redis://[::1", "url: "),
    ],
)
def test_what_is_wrong_with_a_url_is_said_before_anything_is_connected(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_backend(url, clock=SystemClock(), namespace="tests")
    assert str(caught.value).startswith("url: ")
