"""Where in a request a guard's key or tenant is found."""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

from asyncguard.keys import MAX_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asyncguard.http.asgi import Scope

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Source(Protocol):
    """Reads a key or a tenant from a request, as ASGI shows it."""

    def __call__(self, scope: Scope, /) -> Any:
        """Read it."""


@final
@dataclass(frozen=True, slots=True)
class _Header:
    name: bytes
    default: str
    identifies = True

    def __call__(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == self.name:
                return _bounded(value.decode("latin-1").strip()) or self.default
        return self.default


def header(name: str, *, default: str = "none") -> Source:
    """Read a header that says who asks, such as an API key; `default` stands for those without it.

    A value of more than 512 characters counts as its SHA-256.

    Raises:
        TypeError, ValueError: the name is no header's.
    """
    if not isinstance(name, str):
        raise TypeError(f"header: expected a header's name, got {name!r}")
    if not name or not name.isascii() or any(character in name for character in " :\r\n\t"):
        raise ValueError(f"header: expected a header's name, got {name!r}")
    return _Header(name.lower().encode(), default)


@final
@dataclass(frozen=True, slots=True)
class _ClientIP:
    trusted: tuple[_Network, ...]
    identifies = True

    def __call__(self, scope: Scope) -> str:
        client = scope.get("client")
        address = _address(client[0]) if client else None
        if address is None:
            return "unknown"
        forwarded = [
            part
            for name, value in scope["headers"]
            if name == b"x-forwarded-for"
            for part in value.decode("latin-1").split(",")
        ]
        # From the nearest on: what a proxy that we trust says of whom it speaks for.
        while forwarded and self._trusts(address):
            further = _address(forwarded.pop())
            if further is None:
                break
            address = further
        return str(address)

    def _trusts(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self.trusted if network.version == address.version)


def client_ip(*, trusted_proxies: Iterable[str] = ()) -> Source:
    """Read the client's address; behind proxies, name theirs (addresses or networks) to look past them.

    `X-Forwarded-For` is believed only as far as it was written by `trusted_proxies`: anybody can send it.

    Raises:
        TypeError, ValueError: one of them is no address or network.
    """
    if isinstance(trusted_proxies, str):
        raise TypeError(f"trusted_proxies: expected several addresses or networks, got {trusted_proxies!r}")
    return _ClientIP(tuple(ipaddress.ip_network(proxy) for proxy in trusted_proxies))


@final
@dataclass(frozen=True, slots=True)
class _PathParam:
    name: str
    identifies = False

    def __call__(self, scope: Scope) -> Any:
        try:
            value = scope["path_params"][self.name]
        except KeyError:
            raise LookupError(
                f"path_param: the route of {scope.get('path')!r} has no parameter {self.name!r}; middleware, "
                "which runs before the route is known, computes a key from the scope's path"
            ) from None
        return _bounded(value) if isinstance(value, str) else value


def path_param(name: str) -> Source:
    """Read a parameter of the route's path, such as `account` of `/report/{account}`.

    Raises:
        TypeError: the name isn't a str.
    """
    if not isinstance(name, str):
        raise TypeError(f"path_param: expected a parameter's name, got {name!r}")
    return _PathParam(name)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    host = text.strip()
    if host.startswith("["):  # an IPv6 address, perhaps with a port
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if address.version == 6 else address  # noqa: PLR2004


def _bounded(text: str) -> str:
    """Keep what a client sends from growing: what is longer than a key counts as its digest."""
    return text if len(text) <= MAX_KEY else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
