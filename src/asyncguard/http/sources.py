"""Where in a request a guard's key or tenant is found."""

from __future__ import annotations

import hashlib
import ipaddress
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, final

from asyncguard.errors import GuardError
from asyncguard.keys import MAX_KEY, as_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asyncguard.http.asgi import Scope

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class NoKey(GuardError):
    """The request has no key where the guard needs one, so its work did not run."""


class Source(Protocol):
    """Reads a key or a tenant from a request, as ASGI shows it.

    What is empty, or None, is no key: such a request is answered with 400. One that says who the caller is
    has a method `identifies`, which tells whether a value does.
    """

    def __call__(self, scope: Scope, /) -> Any:
        """Read it."""


def bounded(text: str) -> str:
    """Keep what a client sends from growing: what is no key by its length or letters is its digest."""
    if len(text) <= MAX_KEY and (
        text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
    ):
        return text
    return _digest(text)


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


# --- headers -----------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class _Header:
    reads_requests: ClassVar = True
    name: bytes
    default: str
    secret: bool

    def __call__(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == self.name:  # the first counts, as it does for frameworks that check what it says
                text = value.decode("latin-1").strip()
                if text:
                    return _digest(text) if self.secret else bounded(text)
                break
        return self.default

    def identifies(self, value: str) -> bool:
        return value != self.default


def header(name: str, *, default: str = "none", secret: bool = False) -> Source:
    """Read a header that says who asks, such as an API key; `default` stands for those without it.

    Operators see keys and tenants, in logs too; of one that is `secret` they see a digest. So they do
    where the value has more than 512 characters. Of several such headers the first counts.

    Raises:
        TypeError, ValueError: the name is no header's, or the default can't be a key.
    """
    if not isinstance(name, str):
        raise TypeError(f"header: expected a header's name, got {name!r}")
    if not name or not set(name) <= _TOKEN:
        raise ValueError(f"header: expected a header's name, got {name!r}")
    return _Header(name.lower().encode(), as_key(default, "default"), bool(secret))


_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""What a header's name may be made of (RFC 9110)."""


# --- addresses ---------------------------------------------------------------------------------

_UNIX: Final = "unix"
_UNKNOWN: Final = "unknown"


@final
@dataclass(frozen=True, slots=True)
class _ClientIP:
    reads_requests: ClassVar = True
    trusted: tuple[_Network, ...]
    trusts_unix: bool

    def __call__(self, scope: Scope) -> str:
        host = (scope.get("client") or ("",))[0]
        address = _address(host) if host else None
        if (self.trusts_unix and not host) or (address is not None and self._trusts(address)):
            address = self._behind(address, scope)
        return _UNKNOWN if address is None else str(address)

    def identifies(self, value: str) -> bool:
        return value != _UNKNOWN

    def _behind(self, address: _Address | None, scope: Scope) -> _Address | None:
        """Follow what proxies say, from the nearest on, for as long as we trust who says it."""
        for text in _forwarded(scope):
            further = _address(text)
            if further is None:
                return address
            address = further
            if not self._trusts(address):
                return address
        return address

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self.trusted if network.version == address.version)


def _forwarded(scope: Scope) -> Iterator[str]:
    """Read X-Forwarded-For from its end, where the nearest proxy wrote."""
    for name, value in reversed(list(scope["headers"])):
        if name == b"x-forwarded-for":
            for part in reversed(value.decode("latin-1").split(",")):
                if text := part.strip():
                    yield text


def client_ip(*, trusted_proxies: Iterable[str] = ()) -> Source:
    """Read the client's address; behind proxies, name theirs (addresses or networks) to look past them.

    `X-Forwarded-For` is believed only as far as it was written by `trusted_proxies`: anybody can send it.
    "unix" trusts who comes over a Unix socket. Where no address is known the key is "unknown".

    Raises:
        TypeError, ValueError: one of them is no address or network.
    """
    if isinstance(trusted_proxies, str):
        raise TypeError(f"trusted_proxies: expected several addresses or networks, got {trusted_proxies!r}")
    proxies = list(trusted_proxies)
    networks = tuple(_network(proxy) for proxy in proxies if proxy != _UNIX)
    return _ClientIP(networks, _UNIX in proxies)


def _network(text: str) -> _Network:
    if not isinstance(text, str):
        raise TypeError(f"trusted_proxies: expected addresses or networks as text, got {text!r}")
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"trusted_proxies: expected addresses, networks or {_UNIX!r}: {error}") from None


def _address(text: str) -> _Address | None:
    host = text.strip()
    if host.startswith("["):  # an IPv6 address, perhaps with a port
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])  # an interface of ours is none of the client's
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if address.version == 6 else address  # noqa: PLR2004


# --- paths -------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class _PathParam:
    reads_requests: ClassVar = True
    name: str

    def __call__(self, scope: Scope) -> Any:
        try:
            value = scope["path_params"][self.name]
        except KeyError:
            raise LookupError(
                f"path_param: the route of {scope.get('path')!r} has no parameter {self.name!r}; it has "
                f"{', '.join(scope.get('path_params') or ()) or 'none'} (in middleware none are known yet: "
                "there, compute a key from the scope's path)"
            ) from None
        return value if isinstance(value, str | int | uuid.UUID) else str(value)


def path_param(name: str) -> Source:
    """Read a parameter of the route's path, such as `account` of `/report/{account}`.

    It is the text in the path: "7" and "07" are different keys, even if the endpoint takes an `int`. Let
    the path say what it is, `/report/{account:int}`, or take the permit by the decorator, which sees what
    the endpoint gets.

    Raises:
        TypeError: the name isn't a str.
    """
    if not isinstance(name, str):
        raise TypeError(f"path_param: expected a parameter's name, got {name!r}")
    return _PathParam(name)
