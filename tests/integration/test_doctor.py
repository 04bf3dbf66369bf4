"""`asyncguard doctor`, asked about servers that are well, and about many that aren't."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import socket
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from valkey_server import connect, started_server

from asyncguard import AsyncGuard, Rate
from asyncguard.backends.redis_rules import SCRIPT
from asyncguard.cli import main
from asyncguard.commands.examination import server as examination
from asyncguard.commands.examination.server import SCRIPTED

from .test_cli import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = Path(__file__).parents[2].joinpath("docs", "redis.md").read_text()
CHECKS = [
    "connection",
    "version",
    "role",
    "cluster",
    "eviction",
    "memory",
    "persistence",
    "replication",
    "limits",
    "clock",
    "rights",
    "latency",
    "grant",
]
RESET = b"reset"
"""What answers by resetting the connection."""
RIGHTS = "".join(re.findall(r"^ACL SETUSER asyncguard.*\n(?:  .*\n)*", PAGE, re.MULTILINE)).split()
"""The line of the page, in words."""


class Doctor:
    """What one examination said."""

    def __init__(self, code: int, printed: str) -> None:
        self.code = code
        self.printed = printed
        self.checks: dict[str, dict[str, str]] = {
            each["check"]: each for each in json.loads(printed)["checks"]
        }

    def of(self, verdict: str) -> list[str]:
        return [check for check, found in self.checks.items() if found["verdict"] == verdict]

    def says(self, check: str, verdict: str, text: str) -> None:
        found = self.checks[check]
        assert found["verdict"] == verdict, found
        assert re.search(text, f"{found['said']}. {found['advice']}"), found


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Doctor]:
    monkeypatch.setattr(examination, "_SAMPLES", 20)

    def examine(*arguments: str) -> Doctor:
        code = main(["doctor", "--json", *arguments])
        return Doctor(code, capsys.readouterr().out)

    return examine


@pytest.fixture
def server() -> Iterator[tuple[str, Any]]:
    with started_server("--appendonly", "yes") as url, contextlib.closing(connect(url)) as admin:
        yield url, admin


# --- one that is well ------------------------------------------------------------------------------


def test_nothing_is_wrong_and_nothing_is_left(
    server: tuple[str, Any], doctor: Callable[..., Doctor], capsys: pytest.CaptureFixture[str]
) -> None:
    url, admin = server
    found = doctor(url)
    assert (found.code, found.of("ok")) == (0, CHECKS)
    assert admin.keys("*") == []
    assert admin.pubsub_channels() == []
    assert main(["doctor", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ok       connection   {url} answers the user 'default'."
    assert lines[-1] == "nothing wrong, 0 warnings, 0 unseen"
    assert len(lines) == len(CHECKS) + 1


def test_a_real_command_examines_what_the_environment_names(redis_url: str) -> None:
    done = run("doctor", ASYNCGUARD_URL=redis_url.replace("redis:", "valkey:") + "?lease=10&timeout=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == len(CHECKS) + 1


def test_the_page_shows_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.search(r"```text\n(ok .*?)```", PAGE, re.DOTALL)
    assert shown is not None
    with started_server() as url:
        assert main(["doctor", url]) == 0

    def masked(text: str) -> str:
        text = text.replace("ahead of", "behind").replace("Redis 7", "Valkey 9").replace(" KB", " MB")
        return re.sub(r"\d[\d.,]*", "0", text)

    assert masked(capsys.readouterr().out) == masked(shown[1])


def test_the_page_has_each_check_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.findall(r"^\| `([a-z]+)` \|", PAGE, re.MULTILINE)[: len(CHECKS)] == CHECKS
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    options = re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert len(options) == 2
    for option in options:
        assert re.search(rf"^\| `{option}[ `]", PAGE, re.MULTILINE)


# --- settings that are bad -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "check", "verdict", "text"),
    [
        ("--maxmemory-policy allkeys-lru --maxmemory 100mb", "eviction", "wrong", "forgets who holds"),
        ("--maxmemory-policy allkeys-random", "eviction", "warning", "no maxmemory by now.*noeviction"),
        (
            "--maxmemory-policy volatile-ttl --maxmemory 100mb",
            "eviction",
            "warning",
            "which tickets have left",
        ),
        ("--maxmemory 100mb", "memory", "ok", r"B of maxmemory 104\.9 MB"),
        ("--maxmemory 500kb", "memory", "wrong", "lets nobody in"),
        ("--maxmemory 500kb", "grant", "wrong", "it is full, and lets nobody in"),
        (
            "--save 3600,1",
            "persistence",
            "warning",
            "save 3600 1: a restart loses .* since the last snapshot",
        ),
        ("--appendonly yes --appendfsync always", "persistence", "ok", "nothing is lost"),
        ("--appendonly yes", "persistence", "ok", "everysec.*last seconds"),
        (
            "--appendonly yes --appendfsync no",
            "persistence",
            "warning",
            "half minute.*Set appendfsync everysec",
        ),
        ("--timeout 5", "limits", "warning", "timeout 5: .*Set timeout 0"),
        ("--lua-time-limit 50", "limits", "warning", "busy-reply-threshold 50: "),
        (
            "--client-output-buffer-limit pubsub,64kb,0,0",
            "limits",
            "warning",
            r"pubsub 65\.5 KB|pubsub 0\.1 MB",
        ),
        ("--maxclients 1", "limits", "warning", "1 clients of maxclients 1"),
        ("--maxclients 1", "grant", "wrong", "as many clients are connected as it allows"),
        ("--min-replicas-to-write 1", "grant", "wrong", "fewer replicas than min-replicas-to-write"),
        ("--databases 1", "version", "ok", r"(Valkey|Redis) \d"),
    ],
)
def test_settings_are_judged(
    doctor: Callable[..., Doctor], options: str, check: str, verdict: str, text: str
) -> None:
    words = [word.replace(",", " ") for word in options.split()]
    with started_server(*words) as url:
        found = doctor(url)
    found.says(check, verdict, text)
    assert found.code == (1 if found.of("wrong") else 0)


def test_memory_that_is_nearly_full_is_a_warning(
    server: tuple[str, Any], doctor: Callable[..., Doctor]
) -> None:
    url, admin = server
    admin.config_set("maxmemory", int(admin.info("memory")["used_memory"] * 1.15))
    doctor(url).says("memory", "warning", "% *.*Raise maxmemory")


def test_a_replica_grants_nothing_and_its_primary_may_lose_some(
    server: tuple[str, Any], doctor: Callable[..., Doctor]
) -> None:
    url, admin = server
    port = url.rpartition(":")[2].partition("/")[0]
    with started_server("--replicaof", f"127.0.0.1 {port}") as replica:
        found = doctor(replica)
        found.says("role", "wrong", f"a replica of 127.0.0.1:{port}.*primary's URL")
        found.says("grant", "wrong", "takes no writes, as it is a replica")
        assert found.code == 1
        until_true(lambda: admin.info("replication")["connected_slaves"] == 1)
        doctor(url).says("replication", "warning", "1 replica may lag behind.*Set min-replicas-to-write 1")
        admin.config_set("min-replicas-to-write", 1)
        doctor(url).says("replication", "ok", "without 1 that answered within 10 s it takes no writes")


def until_true(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


# --- clusters --------------------------------------------------------------------------------------


def test_of_a_cluster_a_node_is_examined_with_a_guard_that_is_on_it(doctor: Callable[..., Doctor]) -> None:
    options = "--cluster-enabled", "yes"
    with started_server(*options) as url, started_server(*options) as other:
        as_cluster = url.replace("redis://", "redis+cluster://")
        doctor(as_cluster).says("cluster", "wrong", "the cluster's state is 'fail'.*each slot")
        with contextlib.closing(connect(url)) as one, contextlib.closing(connect(other)) as two:
            one.execute_command("CLUSTER ADDSLOTSRANGE", 0, 4095)
            two.execute_command("CLUSTER ADDSLOTSRANGE", 4096, 16383)
            two.execute_command("CLUSTER MEET", "127.0.0.1", url.rpartition(":")[2].partition("/")[0])
            until_true(
                lambda: all(
                    node.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
                    and node.execute_command("CLUSTER INFO")["cluster_known_nodes"] == "2"
                    for node in (one, two)
                )
            )
            found = doctor(as_cluster)
            found.says("cluster", "ok", "the cluster of 2 serves all slots")
            assert found.of("wrong") == found.of("unseen") == [], found.printed
            assert one.keys("*") == two.keys("*") == []
            found = doctor(url)
            found.says("cluster", "wrong", r"one node of a cluster.*redis\+cluster://")
            assert found.code == 1


def test_what_is_no_cluster_is_told(redis_url: str, doctor: Callable[..., Doctor]) -> None:
    doctor(redis_url.replace("redis://", "redis+cluster://")).says("cluster", "wrong", "in no cluster")


# --- rights ----------------------------------------------------------------------------------------


def denied(admin: Any) -> set[str]:
    """Tell which commands were denied, but for what the driver tries at each connection."""
    return {entry["object"] for entry in admin.acl_log()} - {"client|setinfo", "client"}


def as_user(url: str) -> str:
    return url.replace("redis://", "redis://asyncguard:SECRET@")


def test_the_least_rights_on_the_page_are_enough(
    server: tuple[str, Any], doctor: Callable[..., Doctor]
) -> None:
    url, admin = server
    admin.execute_command(*RIGHTS)
    found = doctor(as_user(url))
    assert (found.code, found.of("wrong"), found.of("warning")) == (0, [], [])
    assert found.of("ok") == ["connection", "clock", "rights", "latency", "grant"]
    assert found.of("unseen") == [check for check in CHECKS if check not in found.of("ok")]
    assert "SECRET" not in found.printed
    assert denied(admin) == {"info", "config|get"}
    assert admin.keys("*") == []


@pytest.mark.parametrize(
    "right", [word for word in RIGHTS if word.startswith("+") and word not in ("+client|setinfo", "+select")]
)
def test_and_each_of_them_is_needed(redis_url: str, doctor: Callable[..., Doctor], right: str) -> None:
    with contextlib.closing(connect(redis_url)) as admin:
        try:
            admin.execute_command(*(word for word in RIGHTS if word != right))
            found = doctor(as_user(redis_url))
            assert admin.keys("asyncguard:{asyncguard/asyncguard-doctor*") == []
        finally:
            admin.acl_deluser("asyncguard")
    command = right.removeprefix("+").replace("|", " ").upper()
    found.says("rights", "wrong", rf"may not run (scripts: .*evalsha|{command} on)")
    assert found.code == 1


def test_guards_work_with_them(server: tuple[str, Any]) -> None:
    url, admin = server
    admin.execute_command(*RIGHTS)

    async def share() -> set[int]:
        async with AsyncGuard(as_user(url)) as ag:
            guard = ag.guard("report", order="fair", rate=Rate(1000, per=1), max_keys=2)

            async def work(tenant: str) -> int:
                async with guard.permit(key="alice", tenant=tenant) as permit:
                    await asyncio.sleep(0)
                    return permit.token

            return {*await asyncio.gather(*(work(tenant) for tenant in "ababcc"))}

    assert len(asyncio.run(share())) == 6
    assert denied(admin) == set()


@pytest.mark.parametrize("pattern", ["~asyncguard:*", "&asyncguard:*"])
def test_and_so_are_the_keys_and_channels(
    redis_url: str, doctor: Callable[..., Doctor], pattern: str
) -> None:
    with contextlib.closing(connect(redis_url)) as admin:
        try:
            admin.execute_command(*(word.replace(pattern, f"{pattern[0]}other:*") for word in RIGHTS))
            found = doctor(as_user(redis_url))
            found.says("rights", "wrong", "SUBSCRIBE|GET")
            found.says("grant", "unseen", "wasn't tried, as rights are missing")
            narrower = [word.replace("asyncguard:*", "asyncguard:{shop/*") for word in RIGHTS]
            admin.execute_command(*narrower)
            assert doctor(as_user(redis_url)).code == 1
            assert doctor(as_user(redis_url), "--namespace", "shop").code == 0
        finally:
            admin.acl_deluser("asyncguard")


def test_all_that_scripts_run_is_looked_for() -> None:
    called = set(re.findall(r"call\('([A-Z]+)'", SCRIPT)) | set(re.findall(r"redis\.([A-Z]+)\(", SCRIPT))
    assert {name for name, *_ in SCRIPTED} | {"TIME"} == called
    given = {word.removeprefix("+").upper() for word in RIGHTS if word.startswith("+")}
    assert called <= given


def test_without_config_it_says_what_it_couldnt_see(
    server: tuple[str, Any], doctor: Callable[..., Doctor]
) -> None:
    url, admin = server
    admin.execute_command(
        "ACL SETUSER", "asyncguard", "on", ">SECRET", "allkeys", "allchannels", "+@all", "-config"
    )
    found = doctor(as_user(url))
    assert (found.of("unseen"), found.code) == (["limits"], 0)
    found.says("limits", "unseen", "CONFIG isn't allowed.*busy-reply-threshold")
    found.says("persistence", "ok", "when it syncs couldn't be seen")
    with started_server() as url, contextlib.closing(connect(url)) as admin:
        admin.execute_command(
            "ACL SETUSER", "asyncguard", "on", ">SECRET", "allkeys", "allchannels", "+@all", "-config"
        )
        doctor(as_user(url)).says("persistence", "warning", "since the last snapshot, if there are any")


# --- what isn't there, or something else -----------------------------------------------------------


def test_who_isnt_let_in_is_told(doctor: Callable[..., Doctor]) -> None:
    with started_server("--requirepass", "secret", user=":secret@") as url:
        assert doctor(url).code == 0
        for user in (":wrong@", "", "joe:secret@"):
            found = doctor(url.replace(":secret@", user))
            found.says(
                "connection", "wrong", "doesn't take the name and password.*redis://user:password@host"
            )
            assert (found.code, list(found.checks)) == (1, ["connection"])
            assert "secret" not in found.printed.replace("joe", "")
            assert "wrong@" not in found.printed


def test_a_database_that_isnt_there_is_told(redis_url: str, doctor: Callable[..., Doctor]) -> None:
    found = doctor(redis_url.removesuffix("0") + "99")
    found.says("connection", "wrong", "no database of that number")


def test_nothing_that_listens_is_told(doctor: Callable[..., Doctor]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    doctor(f"redis://127.0.0.1:{port}").says(
        "connection", "wrong", "can't be reached.*refused.*See that it runs"
    )


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "isn't Redis or Valkey.*host and port"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "isn't Redis or Valkey"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "is loading its data.*Wait"),
        (b"-ERR max number of clients reached\r\n", "as many clients are connected as it allows"),
        (b"-BUSY Redis is busy running a script.\r\n", "a script keeps it busy.*SCRIPT KILL"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "answers with an error"),
        (b"", "it hung up.*wants TLS"),
        (RESET, "it hung up.*wants TLS"),
        (None, "doesn't answer.*firewall"),
    ],
)
def test_what_else_answers_is_told(
    doctor: Callable[..., Doctor], monkeypatch: pytest.MonkeyPatch, answer: bytes | None, text: str
) -> None:
    monkeypatch.setattr(examination, "_ANSWER", 0.3)
    accepted = []

    def answer_all(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                accepted.append(connection)
                while answer is not None and (asked := connection.recv(10_000)):
                    if answer == RESET:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        connection.close()
                        break
                    connection.sendall(answer * len(re.findall(rb"(?:^|\r\n)\*\d", asked)))
                    if not answer.startswith(b"-"):
                        connection.close()
                        break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_all, args=(listener,))
        thread.start()
        found = doctor(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in accepted:
        connection.close()
    found.says("connection", "wrong", text)
    assert found.code == 1


def test_tls_where_there_is_none_is_told(
    redis_url: str, doctor: Callable[..., Doctor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "_CONNECT", 0.3)
    monkeypatch.setattr(examination, "_ANSWER", 0.3)
    doctor(redis_url.replace("redis:", "rediss:")).says("connection", "wrong", "rediss://")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis:///0", "expected a host"),
        ("redis://localhost:77777/0", "expected hosts such as host:6379"),
        ("redis://localhost/x", "number of a database"),
        ("redis://joe:pa#ss@localhost/0", "%23, .*got 'redis://localhost/0'"),
        ("redis://:pa/ss@localhost/0", "%2F"),
        ("redis://localhost/0?socket_tiemout=3", "socket_tiemout"),
        ("redis+sentinel://localhost", "redis://, rediss://.*got 'redis\\+sentinel'"),
        ("localhost:6379", "got 'localhost'"),
        ("sqlite:guards.db", "three slashes"),
    ],
)
def test_a_url_that_names_no_server_is_a_usage_error(
    url: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", url]) == 2
    said = capsys.readouterr().err
    assert re.search(f"^asyncguard doctor: .*{text}", said)
    assert "ss@" not in said


def test_without_the_driver_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["doctor", "redis://localhost"]) == 2
    assert 'pip install "asyncguard[redis]"' in capsys.readouterr().err


def test_other_backends_are_looked_at_from_outside(
    tmp_path: Path, doctor: Callable[..., Doctor], monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor("memory:").says("backend", "ok", "nothing to examine")
    doctor(f"sqlite://{tmp_path}/guards.db").says("file", "ok", "isn't there yet")
    assert not list(tmp_path.iterdir())
    (tmp_path / "guards.db").touch()
    doctor(f"sqlite://{tmp_path}/guards.db").says("file", "ok", "is there")
    found = doctor(f"sqlite://{tmp_path}/none/guards.db")
    found.says("file", "wrong", "isn't there.*Make it")
    assert found.code == 1
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("ASYNCGUARD_URL", raising=False)
    doctor().says("file", "ok", "made at its first use")


# --- what no server here is like -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "check", "verdict", "text"),
    [
        ({"redis_version": "6.2.7"}, "version", "wrong", r"Redis 6\.2\.7.*7\.0"),
        ({"redis_version": "7.0.15"}, "version", "ok", r"Redis 7\.0\.15"),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.5"}, "version", "warning", r"Valkey 7\.2\.5"),
        ({"redis_version": "7.4.0", "dragonfly_version": "1"}, "version", "warning", "isn't Redis or Valkey"),
        (
            {"aof_enabled": 0, "rdb_last_bgsave_status": "err"},
            "persistence",
            "wrong",
            "can't write to its disk",
        ),
    ],
)
def test_what_info_tells_is_judged(
    redis_url: str,
    doctor: Callable[..., Doctor],
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, Any],
    check: str,
    verdict: str,
    text: str,
) -> None:
    monkeypatch.setattr(redis.Redis, "info", lambda self: told)
    doctor(redis_url).says(check, verdict, text)


def test_a_clock_that_is_off_is_a_warning(
    redis_url: str, doctor: Callable[..., Doctor], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = SimpleNamespace(
        time=lambda: time.time() - 3600, perf_counter=time.perf_counter, monotonic=time.monotonic
    )
    monkeypatch.setattr(examination, "time", late)
    doctor(redis_url).says("clock", "warning", r"3,600,\d+\.\d ms ahead of.*NTP")


def test_a_slow_server_is_a_warning(
    redis_url: str, doctor: Callable[..., Doctor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "_SLOW", 0.0)
    doctor(redis_url).says("latency", "warning", "nearer, or less busy")


def test_a_message_that_doesnt_arrive_is_told_and_nothing_is_left(
    server: tuple[str, Any], doctor: Callable[..., Doctor], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, admin = server
    monkeypatch.setattr(examination._Examination, "_told", lambda *_: [])
    found = doctor(url)
    found.says("grant", "wrong", "wasn't told by a message")
    assert found.code == 1
    assert admin.keys("*") == []
