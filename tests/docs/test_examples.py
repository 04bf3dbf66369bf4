"""The documentation runs as printed, and leaves nothing out."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import asyncguard
from asyncguard import testing
from asyncguard.cli import main
from asyncguard.errors import REFUSALS
from asyncguard.guard import Ask
from asyncguard.service.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
TESTING = (ROOT / "docs" / "testing.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()
SIMULATE = (ROOT / "docs" / "simulate.md").read_text()
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ asyncguard (simulate .*)\n((?:(?!\$ |```).*\n)*)", re.MULTILINE)
"""A command on a page, and what it prints, where that is shown."""
PRINTED = re.compile(r"\s*^It prints:\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""What an example prints, right behind it."""
TOKEN = re.compile(r"\b\d{16}\b")
A_REDIS = "redis://localhost:6379"
"""The server of examples that need one."""


@dataclass
class Example:
    page: Path
    line: int
    code: str
    prints: str | None = None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def examples() -> list[Example]:
    return [
        Example(page, text.count("\n", 0, block.start(1)) + 1, block[1], printed and printed[1])
        for page in PAGES
        for text in [page.read_text()]
        for block in BLOCK.finditer(text)
        for printed in [PRINTED.match(text, block.end())]
    ]


@pytest.mark.parametrize("example", examples(), ids=str)
def test_it_runs_as_printed(
    example: Example, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    source = example.code
    if A_REDIS in source:
        source = source.replace(A_REDIS, request.getfixturevalue("redis_url"))
    # Line numbers as on the page, so that a failure points there.
    code = compile("\n" * (example.line - 1) + source, example.page, "exec")
    exec(code, namespace)  # noqa: S102
    if example.prints is not None:
        assert TOKEN.sub("TOKEN", capsys.readouterr().out) == TOKEN.sub("TOKEN", example.prints)
    app = namespace.get("app")
    if isinstance(app, FastAPI):
        check_application(app)


def commands() -> list[Example]:
    return [
        Example(page, text.count("\n", 0, command.start(1)) + 1, command[0])
        for page in PAGES
        for text in [page.read_text()]
        for command in COMMAND.finditer(text)
    ]


@pytest.mark.parametrize("example", commands(), ids=str)
def test_it_prints_what_is_shown(
    example: Example,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = COMMAND.match(example.code)
    assert command is not None
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    assert main(command[1].split()) == 0
    printed = "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())
    assert command[2] in ("", printed)


def check_application(app: FastAPI) -> None:
    """Ask every endpoint that the example has."""
    paths = app.openapi()["paths"]
    assert paths
    with TestClient(app) as client:
        for path in paths:
            response = client.get(re.sub("{.*?}", "7", path))
            assert response.status_code == 200, response.text
            assert response.headers["server-timing"].startswith("queue;desc=")


@pytest.mark.parametrize("example", [each for each in examples() if "def test_" in each.code], ids=str)
def test_its_tests_pass(example: Example, tmp_path: Path) -> None:
    (conftest,) = [each.code for each in examples() if "pytest_plugins" in each.code]
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_example.py").write_text("\n" * (example.line - 1) + example.code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout


def test_readme_has_an_application_of_about_ten_lines() -> None:
    first = BLOCK.search(README)
    assert first is not None
    lines = [line for line in first[1].splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 12


def options(function: Any) -> list[str]:
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]


@pytest.mark.parametrize("name", options(asyncguard.AsyncGuard.guard))
def test_every_option_of_a_guard_is_shown(name: str) -> None:
    assert f"\n| `{name}` |" in README
    assert f"\n### `{name}`\n" in GUIDE


@pytest.mark.parametrize("name", ["key", *Ask.__annotations__])
def test_everything_that_a_call_may_ask_is_shown(name: str) -> None:
    assert f"`{name}`" in README.partition("Of a call")[2].partition("##")[0]
    assert re.search(rf"^### .*`{name}`", GUIDE, re.MULTILINE)


def test_every_error_is_listed() -> None:
    for reason, error in REFUSALS.items():
        assert f"\n| `{error.__name__}` | `{reason}` |" in README
    for name in asyncguard.__all__:
        public = getattr(asyncguard, name)
        if inspect.isclass(public) and issubclass(public, asyncguard.GuardError):
            assert f"`{name}`" in README


def test_every_setting_is_listed() -> None:
    for name in Settings.__dataclass_fields__:
        assert f"\n| `ASYNCGUARD_{name.upper()}` |" in GUIDE


def test_every_option_of_the_simulation_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", "--help"])
    options = re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert len(options) > 10
    for option in options:
        assert re.search(rf"^### `{option}[ `].*\n(?:(?!#).*\n)+\$ .*{option}\b", SIMULATE, re.MULTILINE)


@pytest.mark.parametrize("command", ["run", "status", "serve"])
def test_every_option_of_a_command_is_shown(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    section = COMMANDS.partition(f"## `asyncguard {command}`")[2].partition("\n## ")[0]
    assert len(options) > 2
    for option in options:
        assert re.search(rf"^\| `{option}[ `]", section, re.MULTILINE), option


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {target for page in PAGES for target in re.findall(r"(?:    |`)make ([a-z-]+)", page.read_text())}
    assert {"serve", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_everything_for_tests_of_applications_is_shown() -> None:
    for name in testing.__all__:
        assert f"\n| `{name}(" in TESTING
