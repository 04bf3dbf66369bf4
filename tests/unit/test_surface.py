"""What the package offers, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types

import pytest

import asyncguard


def test_all_names_what_the_package_exports() -> None:
    public = {
        name
        for name, value in vars(asyncguard).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(asyncguard.__all__)


def test_all_is_in_order_and_names_each_once() -> None:
    assert asyncguard.__all__ == sorted(set(asyncguard.__all__))


@pytest.mark.parametrize("name", asyncguard.__all__)
def test_every_public_class_and_function_says_what_it_is(name: str) -> None:
    value = getattr(asyncguard, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)


@pytest.mark.parametrize(
    "error", [*asyncguard.GuardError.__subclasses__(), *asyncguard.Refused.__subclasses__()]
)
def test_the_docstring_of_an_error_is_its_message_or_at_least_a_sentence(
    error: type[asyncguard.GuardError],
) -> None:
    assert (error.__doc__ or "").rstrip().endswith(".") or ":" in (error.__doc__ or "")
    if issubclass(error, asyncguard.Refused):
        assert str(error()) == error.__doc__


def test_importing_the_package_loads_only_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import asyncguard; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    others = set(loaded.stdout.split()) - sys.stdlib_module_names
    assert others == {"asyncguard"}


def test_importing_the_package_starts_no_thread_and_opens_no_loop() -> None:
    program = (
        "import asyncguard, threading; guard = asyncguard.AsyncGuard().guard('report'); "
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
