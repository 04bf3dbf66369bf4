"""Where keys and tenants come from: what a client may send there, and what it can't bring about."""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from enum import Enum
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncguard import AsyncGuard, current_permit
from asyncguard.http.fastapi import GuardMiddleware, client_ip, header, path_param, require
from asyncguard.http.sources import bounded
from asyncguard.keys import as_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncguard.http.asgi import Message, Scope
    from asyncguard.http.sources import Source

Headers = list[tuple[bytes, bytes]]


def scope(*fields: tuple[str, str], client: tuple[str, int] | None = ("1.2.3.4", 5), **more: Any) -> Scope:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    return {"type": "http", "method": "GET", "path": "/", "headers": headers, "client": client, **more}


# --- headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([], "none"),
        ([""], "none"),
        (["  \t "], "none"),
        ([" alice "], "alice"),
        (["alice", "bob"], "alice"),
        (["", "bob"], "none"),  # as the code that checks an API key would see it
        (["\x00\xff"], "\x00\xff"),
        (["x" * 512], "x" * 512),
    ],
)
def test_a_header_is_a_key(values: list[str], key: str) -> None:
    assert header("X-API-Key")(scope(*(("x-api-key", value) for value in values))) == key


def test_a_long_header_is_its_digest() -> None:
    one, same, other = (header("a")(scope(("a", text))) for text in ("x" * 9999, "x" * 9999, "x" * 9998))
    assert one == same != other
    assert len(one) < 100


async def test_a_secret_is_not_shown() -> None:
    source = header("x-api-key", secret=True)
    key = source(scope(("x-api-key", "s3cret")))
    assert key == source(scope(("x-api-key", " s3cret "))) != source(scope(("x-api-key", "other")))
    assert key.startswith("sha256:")
    assert source(scope()) == source(scope(("x-api-key", ""))) == "none"
    assert source != header("x-api-key")


def test_those_without_a_header_share_a_key() -> None:
    assert header("a", default="strangers")(scope()) == "strangers"


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "é", 'a"b', "a(b", "a\x7f"])
def test_what_is_no_headers_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="header: expected a header's name, got"):
        header(name)


def test_a_default_must_be_a_key() -> None:
    with pytest.raises(ValueError, match="default: expected 1 to 512"):
        header("a", default="")
    wrong: Any = None
    with pytest.raises(TypeError, match="default: expected a str"):
        header("a", default=wrong)
    with pytest.raises(TypeError, match="header: expected a header's name"):
        header(wrong)


# --- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "key"),
    [
        (("1.2.3.4", 80), "1.2.3.4"),
        (("::ffff:1.2.3.4", 80), "1.2.3.4"),
        (("2001:DB8:0::1", 80), "2001:db8::1"),
        (("fe80::1%eth0", 80), "fe80::1"),
        (("fe80::1%" + "x" * 9999, 80), "fe80::1"),
        (("[2001:db8::1]:443", 80), "2001:db8::1"),
        (("testclient", 50000), "unknown"),
        (("", 0), "unknown"),
        (None, "unknown"),
    ],
)
def test_an_address_is_a_key(client: tuple[str, int] | None, key: str) -> None:
    assert client_ip()(scope(client=client)) == key
    assert client_ip()(scope(("x-forwarded-for", "6.6.6.6"), client=client)) == key, "nobody is believed"


PROXIES = ("10.0.0.0/8", "192.0.2.7", "2001:db8:ffff::/48")


@pytest.mark.parametrize(
    ("forwarded", "key"),
    [
        ([], "10.0.0.1"),
        (["9.9.9.9"], "9.9.9.9"),
        (["6.6.6.6, 9.9.9.9"], "9.9.9.9"),
        (["6.6.6.6", "9.9.9.9"], "9.9.9.9"),
        (["6.6.6.6, 9.9.9.9, 192.0.2.7, 10.9.9.9"], "9.9.9.9"),
        (["9.9.9.9, 10.1.1.1", "2001:db8:ffff::7"], "9.9.9.9"),
        (["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        (["9.9.9.9:1234"], "9.9.9.9"),
        (["[2001:db8::9]:1234"], "2001:db8::9"),
        (["2001:db8::9"], "2001:db8::9"),
        (["::ffff:9.9.9.9"], "9.9.9.9"),
        (["6.6.6.6, ::ffff:10.0.0.9"], "6.6.6.6"),
        (["9.9.9.9, , "], "9.9.9.9"),
        (["6.6.6.6, unknown"], "10.0.0.1"),
        (["6.6.6.6, _hidden, 10.0.0.2"], "10.0.0.2"),
        (["6.6.6.6, 9.9.9.999"], "10.0.0.1"),
        (["6.6.6.6;9.9.9.9"], "10.0.0.1"),
        ([", ,"], "10.0.0.1"),
        (["\xff" * 9999], "10.0.0.1"),
    ],
)
def test_proxies_are_believed_from_the_right(forwarded: list[str], key: str) -> None:
    fields = [("x-forwarded-for", value) for value in forwarded]
    source = client_ip(trusted_proxies=PROXIES)
    assert source(scope(*fields, client=("10.0.0.1", 5))) == key
    assert source(scope(*fields, client=("::ffff:10.0.0.1", 5))) == key
    assert source(scope(*fields, client=("7.7.7.7", 5))) == "7.7.7.7", "a stranger is not believed"
    assert source(scope(*fields, client=None)) == "unknown"


def test_who_comes_over_a_unix_socket_is_believed_if_asked_for() -> None:
    source = client_ip(trusted_proxies=["unix"])
    fields = ("x-forwarded-for", "6.6.6.6, 9.9.9.9")
    assert source(scope(fields, client=None)) == "9.9.9.9"
    assert source(scope(fields, client=("", 0))) == "9.9.9.9"
    assert source(scope(client=None)) == "unknown"
    assert source(scope(fields, client=("7.7.7.7", 5))) == "7.7.7.7"


@pytest.mark.parametrize("proxies", ["10.0.0.1", [7], [b"10.0.0.1"], [None]])
def test_proxies_are_named_as_text(proxies: Any) -> None:
    with pytest.raises(TypeError, match="trusted_proxies: expected"):
        client_ip(trusted_proxies=proxies)


@pytest.mark.parametrize("proxy", ["", "proxy.example.com", "10.0.0.1/8", "10.0.0.0/33"])
def test_what_is_no_proxy_is_refused(proxy: str) -> None:
    with pytest.raises(ValueError, match="trusted_proxies: expected addresses, networks or 'unix': "):
        client_ip(trusted_proxies=[proxy])


@given(st.binary(max_size=300), st.sampled_from([("10.0.0.1", 5), ("", 0), None]))
def test_whatever_is_forwarded_makes_an_address(value: bytes, client: tuple[str, int] | None) -> None:
    source = client_ip(trusted_proxies=[*PROXIES, "unix"])
    key = source({**scope(client=client), "headers": [(b"x-forwarded-for", value)]})
    assert key == "unknown" or str(ipaddress.ip_address(key)) == key


# --- paths -------------------------------------------------------------------------------------


async def keys_of(app: FastAPI, *paths: str) -> list[Any]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return [(await client.get(path)).json() for path in paths]


async def test_a_path_says_what_it_is() -> None:
    ag = AsyncGuard()
    app = FastAPI()
    ag.install(app)
    guard = ag.guard("report")
    held = [Depends(require(guard, key=path_param("account")))]

    @app.get("/text/{account}", dependencies=held)
    async def text(account: int) -> str | None:  # noqa: ARG001
        return current_permit().key

    @app.get("/number/{account:int}", dependencies=held)
    async def number(account: int) -> str | None:  # noqa: ARG001
        return current_permit().key

    @app.get("/float/{account:float}", dependencies=held)
    async def real(account: float) -> str | None:  # noqa: ARG001
        return current_permit().key

    @app.get("/id/{account:uuid}", dependencies=held)
    async def by_id(account: uuid.UUID) -> str | None:  # noqa: ARG001
        return current_permit().key

    some = uuid.uuid4()
    paths = "/text/07", "/number/07", "/float/7.50", f"/id/{some}"
    assert await keys_of(app, *paths) == ["07", "7", "7.5", str(some)]


async def test_a_route_without_the_parameter_is_a_mistake_in_the_code() -> None:
    ag = AsyncGuard()
    app = FastAPI()
    ag.install(app)

    @app.get("/", dependencies=[Depends(require(ag.guard("report"), key=path_param("account")))])
    async def report() -> None: ...

    with pytest.raises(LookupError, match="path_param: the route of '/' has no parameter 'account'"):
        await keys_of(app, "/")


def test_a_parameter_has_a_name() -> None:
    wrong: Any = 7
    with pytest.raises(TypeError, match="path_param: expected a parameter's name, got 7"):
        path_param(wrong)


# --- what sources are --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: header("X-API-Key"), header("x-other")),
        (lambda: header("x", default="a"), header("x", default="b")),
        (lambda: client_ip(trusted_proxies=PROXIES), client_ip()),
        (lambda: client_ip(trusted_proxies=["unix"]), client_ip()),
        (lambda: path_param("account"), path_param("customer")),
    ],
)
def test_sources_are_equal_when_they_are_the_same(make: Any, other: Source) -> None:
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != other
    guard = AsyncGuard().guard("report")
    assert require(guard, key=make()) == require(guard, key=make()) != require(guard, key=other)


@given(st.text(st.characters(), max_size=600))
@example("\ud800")
@example("\ud800" * 600)
def test_every_text_but_none_makes_a_key(text: str) -> None:
    if text:
        assert as_key(bounded(text))


@pytest.mark.parametrize("wrong", [7, "account", b"x"])
def test_what_is_no_source_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="key: expected a source such as"):
        require(AsyncGuard().guard("report"), key=wrong)


def test_a_source_does_not_wait() -> None:
    async def later(scope: Scope) -> str:
        raise NotImplementedError

    with pytest.raises(TypeError, match="tenant: expected a source such as .* plain function"):
        require(AsyncGuard().guard("report"), tenant=later)


# --- keys that can't be used -------------------------------------------------------------------


class Unset(Enum):
    NOTHING = None


UNUSABLE = [None, "", 1.5, b"bytes", [], {}, object(), Unset.NOTHING]


async def ask(app: Any, *fields: tuple[bytes, bytes], **more: Any) -> tuple[int, dict[bytes, bytes], bytes]:
    """Ask an application directly, as no client would send some of these."""
    sent: list[Message] = []
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        return body.pop() if body else await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    asked = {**scope(), **more, "headers": [(b"host", b"test"), *fields], "query_string": b""}
    await app({"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", **asked}, receive, send)
    start, *rest = sent
    return start["status"], dict(start["headers"]), b"".join(message.get("body", b"") for message in rest)


@pytest.mark.parametrize("value", UNUSABLE, ids=repr)
async def test_a_request_without_a_usable_key_is_answered_with_400(value: Any) -> None:
    ag = AsyncGuard()
    guard = ag.guard("report")
    ran: list[str] = []

    def app_with(**more: Any) -> FastAPI:
        app = FastAPI(**more)
        ag.install(app, problems="/problems/")

        @app.get("/")
        async def report() -> None:
            ran.append("work")

        return app

    as_dependency = app_with(dependencies=[Depends(require(guard, key=lambda _: value))])
    as_middleware = app_with()
    as_middleware.add_middleware(GuardMiddleware, guard=guard, key=lambda _: value)
    for app in (as_dependency, as_middleware, GuardMiddleware(app_with(), guard, key=lambda _: value)):
        status, headers, body = await ask(app)
        assert status == 400
        assert headers[b"content-type"] == b"application/problem+json"
        assert b"retry-after" not in headers
        assert b"The request" in body or b"no-key" in body
    assert ran == []
    assert (await guard.inspect()).in_use == 0


@pytest.mark.parametrize("value", [None, ""])
async def test_requests_without_a_tenant_share_one(value: Any) -> None:
    ag = AsyncGuard()
    app = FastAPI()
    ag.install(app)
    guard = ag.guard("report", order="fair")

    @app.get("/", dependencies=[Depends(require(guard, tenant=lambda _: value))])
    async def report() -> str:
        return (await guard.inspect()).holders[0].tenant

    assert await ask(app) == (200, ANY_HEADERS, b'""')


class _Any:
    def __eq__(self, _: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY_HEADERS: Any = _Any()

# --- whatever a client sends -------------------------------------------------------------------

ANYTHING = st.binary(max_size=60) | st.builds(
    lambda start, times: start * times, st.binary(min_size=1, max_size=9), st.sampled_from([1, 600, 9000])
)
PREFER = ANYTHING | st.from_regex(
    rb"(wait|WAIT|respond-async)\s*[=;]\s*\"?[0-9a-z]{0,12}\"?[,; ]*", fullmatch=True
)
FORWARDED = ANYTHING | st.lists(
    st.sampled_from(["10.0.0.9", "9.9.9.9", "::1", "[::1]:80", "unknown", "", "1.2.3", "fe80::1%x"]),
    max_size=30,
).map(lambda parts: ",".join(parts).encode())
FIELDS = st.lists(
    st.tuples(st.just(b"prefer"), PREFER)
    | st.tuples(st.just(b"x-forwarded-for"), FORWARDED)
    | st.tuples(st.just(b"x-api-key"), ANYTHING),
    max_size=6,
)
CLIENTS = st.sampled_from(
    [None, ("", 0), ("10.0.0.1", 1), ("::ffff:10.0.0.1", 1), ("fe80::1%e", 1), ("?", 1)]
)


def fuzzed_app(ag: AsyncGuard) -> FastAPI:
    """Make an application with all that reads headers, on a guard for each."""
    app = FastAPI()
    app.add_middleware(
        GuardMiddleware,
        guard=ag.guard("address", max_keys=3),
        key=client_ip(trusted_proxies=["10.0.0.0/8", "unix"]),
    )
    ag.install(app, expose="capacity")
    by_key = require(ag.guard("caller", max_keys=3), key=header("x-api-key"))
    fair = require(ag.guard("fair", order="fair"), tenant=header("x-api-key"))

    @app.get("/", dependencies=[Depends(by_key), Depends(fair)])
    async def report() -> str:
        return "done"

    return app


@settings(max_examples=200, deadline=None)
@given(FIELDS, CLIENTS)
@example([(b"prefer", b"wait=" + b"9" * 5000)], None)
@example([(b"x-api-key", b"\xed\xa0\x80")] * 2, None)
def test_no_header_brings_about_an_error(fields: Headers, client: tuple[str, int] | None) -> None:
    ag = AsyncGuard()

    async def run() -> None:
        status, headers, _ = await ask(fuzzed_app(ag), *fields, client=client)
        assert status in (200, 429, 503)
        if status != 200:
            assert int(headers[b"retry-after"]) >= 1
        for guard in ag.guards.values():
            picture = await guard.inspect()
            assert (picture.in_use, picture.waiting) == (0, 0)

    asyncio.run(run())


@settings(deadline=None)
@given(st.text(st.characters(), max_size=9) | st.text("/.%\ud800\xe9", min_size=600, max_size=700))
@example("")
def test_no_path_brings_about_an_error(path: str) -> None:
    ag = AsyncGuard()
    app = FastAPI()
    ag.install(app)

    @app.get("/{text:path}", dependencies=[Depends(require(ag.guard("path"), key=path_param("text")))])
    async def report(text: str) -> None: ...

    status, _, _ = asyncio.run(ask(app, path=f"/{path}"))
    if "\n" in path:  # which routes may not find, or cut off
        assert status in (200, 400, 404)
    else:
        assert status == (200 if path else 400)


@settings(max_examples=30, deadline=None)
@given(st.lists(ANYTHING, min_size=1, max_size=20))
def test_no_choice_of_keys_makes_more_than_there_may_be(keys: Sequence[bytes]) -> None:
    ag = AsyncGuard()
    guard = ag.guard("caller", max_keys=3, max_waiting=1)
    may_end = asyncio.Event()
    app = FastAPI()
    ag.install(app)

    @app.get("/", dependencies=[Depends(require(guard, key=header("x-api-key")))])
    async def report() -> None:
        await may_end.wait()

    async def run() -> None:
        tasks = [asyncio.create_task(ask(app, (b"x-api-key", key))) for key in keys]
        for _ in range(20):
            await asyncio.sleep(0)
        picture = await guard.inspect()
        assert picture.in_use <= 3
        assert picture.waiting <= 3
        may_end.set()
        answers = await asyncio.gather(*tasks)
        assert all(status in (200, 429, 503) for status, _, _ in answers)
        assert any(status == 200 for status, _, _ in answers)
        picture = await guard.inspect()
        assert (picture.in_use, picture.waiting) == (0, 0)

    asyncio.run(run())
