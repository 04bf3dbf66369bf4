"""Who may know whom: nothing imports upward, and each layer only what it is for."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import asyncguard

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(asyncguard.__file__).parent
_RULES = {
    "admission",
    "leases",
    "order",
    "sortedqueue",
    "statistics",
    "ticket",
    "clock",
    "errors",
    "keys",
    "checks",
}
"""The rules, and the plain values that they are about."""
_PERMITS = {"client", "events", "permit", "running"}
"""What a permit is on an event loop."""
_GUARDS = {"blocking", "guard", "sideloop", "wrap"}
_ABOVE_GUARDS = {"hub", "http", "observability", "service", "commands", "cli", "testing"}
_UPWARD: dict[str, set[str]] = {
    "rules": {"simulation", "backends"} | _PERMITS | _GUARDS | _ABOVE_GUARDS,
    "permits": {"backends"} | _GUARDS | _ABOVE_GUARDS,
    "backends": _GUARDS | _ABOVE_GUARDS,
    "guards": _ABOVE_GUARDS,
    "hub": {"observability", "service", "commands", "cli", "testing"},
    "http": {"observability", "service", "commands", "cli", "testing"},
    "observability": {"http", "service", "commands", "cli", "testing"},
    "service": {"commands", "cli", "testing"},
    "testing": {"http", "service", "commands", "cli"},
    "simulation": {
        "permit",
        "backends",
        "blocking",
        "guard",
        "sideloop",
        "wrap",
        "hub",
        "http",
        "commands",
        "service",
        "cli",
        "testing",
    },
}
_DRIVERS = {
    "backends.courier": {"redis"},
    "backends.lane": {"hiredis"},
    "backends.redis_cluster": {"redis"},
    "backends.redis_sentinel": {"redis"},
    "backends.redis_servers": {"redis"},
    "backends.redis_url": {"redis"},
    "commands.examination.complaints": {"redis"},
    "commands.examination.server": {"redis"},
}
"""Which modules talk to a server, and by which library: they are imported where a URL names one."""
_PURE_PARTS_OF_BACKENDS = {"backends.claims", "backends.redis_rules", "backends.restored"}
_LATE = {("hub", "http"), ("backends", "backends.memory")}
"""Imports within a function: a hub that serves an application, and a URL that names a backend."""
_FRAMEWORKS = {
    "fastapi",
    "starlette",
    "uvicorn",
    "matplotlib",
    "prometheus_client",
    "rich",
    "opentelemetry",
    "redis",
    "hiredis",
    "valkey",
    "psycopg",
}


def _modules() -> dict[str, Path]:
    paths = sorted(_ROOT.rglob("*.py"))
    names = [".".join(path.relative_to(_ROOT).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def _imports(node: ast.AST, *, late: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield what is imported, and whether that happens within a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are written in full"
            yield child.module or "", late
            yield from ((f"{child.module}.{alias.name}", late) for alias in child.names)
        yield from _imports(child, late=late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def _layer(module: str) -> str:
    top = module.partition(".")[0]
    for layer, modules in (("rules", _RULES), ("permits", _PERMITS), ("guards", _GUARDS)):
        if top in modules:
            return layer
    return top


MODULES = _modules()


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_upward(module: str) -> None:
    upward = _UPWARD.get(_layer(module), set())
    for name, late in _imports(ast.parse(MODULES[module].read_text())):
        package, _, known = name.partition(".")
        if package != "asyncguard" or (
            late and any(known.startswith(to) for by, to in _LATE if by == module)
        ):
            continue
        assert known.partition(".")[0] not in upward, f"{module} knows {name}"


@pytest.mark.parametrize("module", sorted((_RULES | _PURE_PARTS_OF_BACKENDS) & MODULES.keys()))
def test_the_rules_know_no_event_loop_and_do_no_io(module: str) -> None:
    known = {name.partition(".")[0] for name, _ in _imports(ast.parse(MODULES[module].read_text()))}
    assert not known & {"asyncio", "threading", "socket", "concurrent", "selectors", "anyio"}


@pytest.mark.parametrize("module", sorted(_GUARDS | {"hub"} | _PERMITS & MODULES.keys()))
def test_guards_know_the_protocol_and_no_backend(module: str) -> None:
    known = {name for name, _ in _imports(ast.parse(MODULES[module].read_text()))}
    concrete = {name for name in MODULES if name.startswith("backends.")}
    assert not known & {f"asyncguard.{name}" for name in concrete}


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name.partition(".")[0] not in ("http", "observability", "service")]
)
def test_frameworks_and_drivers_are_imported_where_they_are_adapted(module: str) -> None:
    outside = {
        name.partition(".")[0] for name, late in _imports(ast.parse(MODULES[module].read_text())) if not late
    }
    assert not outside & (_FRAMEWORKS - _DRIVERS.get(module, set()))


@pytest.mark.parametrize(
    "module", [name for name in MODULES if not name.startswith(("testing.fixtures", "testing.conformance"))]
)
def test_pytest_is_imported_by_its_fixtures_and_the_conformance_suite_alone(module: str) -> None:
    known = {name.partition(".")[0] for name, _ in _imports(ast.parse(MODULES[module].read_text()))}
    assert "pytest" not in known


@pytest.mark.parametrize(
    ("library", "adapter"),
    [
        ("prometheus_client", "observability.prometheus"),
        ("opentelemetry", "observability.opentelemetry"),
    ],
)
def test_what_watches_guards_is_imported_by_its_adapter_alone(library: str, adapter: str) -> None:
    knowing = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == library for name, _ in _imports(ast.parse(path.read_text())))
    }
    assert knowing == {adapter}
