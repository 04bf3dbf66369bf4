"""`asyncguard simulate`, as people run it."""

from __future__ import annotations

import inspect
import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard
from asyncguard.cli import main

from .servers import clean_environ

if TYPE_CHECKING:
    from pathlib import Path

LOAD = ("--arrivals", "8", "--service", "exp:0.1", "--clients", "2000")


def simulate(*options: str) -> int:
    return main(["simulate", *LOAD, *options])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=clean_environ(COLUMNS="80"),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_it_prints_tables_and_no_bar_where_stderr_is_no_terminal() -> None:
    done = run("-m", "asyncguard", "simulate", *LOAD, "--tenant", "free=9", "--tenant", "pro=1:3")

    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "offered load",
        "utilisation",
        "throughput",
        "mean queue",
        "hopeless",
        "p99",
        "free",
        "pro",
    ):
        assert words in done.stdout
    assert "…" not in done.stdout, "it doesn't fit"


def test_a_bar_is_shown_on_stderr_where_that_is_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    assert simulate("--json") == 0
    assert "simulating" in terminal.getvalue()
    assert json.loads(capsys.readouterr().out)["total"]["came"]


def test_json_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("--json", "--tenant", "free=9", "--tenant", "pro=1") == 0

    result = json.loads(capsys.readouterr().out)
    assert result["seconds"] == pytest.approx(2000 / 8 * 0.9)
    assert 0.5 < result["utilisation"] < 1
    total = result["total"]
    assert total["refused"].keys() == {"full", "hopeless", "timeout"}
    assert total["wait"].keys() == {"mean", "p50", "p90", "p99", "max"}
    free, pro = result["tenants"]
    assert (free["tenant"], pro["tenant"]) == ("free", "pro")
    assert free["came"] > 5 * pro["came"]
    assert free["received"] + pro["received"] == pytest.approx(total["received"])


def test_nobody_granted_is_printed_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--arrivals", "1", "--service", "1", "--clients", "1", "--gaps", "fixed"]) == 0
    assert "waits in seconds" in capsys.readouterr().out


def test_every_option_has_an_effect(capsys: pytest.CaptureFixture[str]) -> None:
    seen = set()
    for options in (
        "",
        "--gaps fixed",
        "--service lognormal:0.1:2",
        "--service uniform:0:0.2",
        "--service 0.1",
        "--limit 2",
        "--max-waiting 2",
        "--max-wait 0.3",
        "--order lifo",
        "--rate 9/1:2",
        "--leave-after 0.2",
        "--clients 1000",
        "--warm-up 0.5",
        "--seed 2",
    ):
        assert simulate("--json", *options.split()) == 0
        seen.add(capsys.readouterr().out)
    assert len(seen) == 14


def test_the_guards_options_have_the_guards_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("--json") == 0
    usual = capsys.readouterr().out
    declared = inspect.signature(AsyncGuard.guard).parameters
    for name in ("limit", "max_waiting", "max_wait", "order", "rate"):
        default = str(declared[name].default).lower()
        assert simulate("--json", f"--{name.replace('_', '-')}", default) == 0
        assert capsys.readouterr().out == usual


@pytest.mark.parametrize(
    "options",
    [
        "--arrivals 0",
        "--arrivals nan",
        "--arrivals 1e9",
        "--gaps often",
        "--service soon",
        "--service exp:0",
        "--service uniform:2:1",
        "--service lognormal:1",
        "--limit 0",
        "--limit 1.5",
        "--max-waiting -1",
        "--max-waiting all",
        "--max-wait -1",
        "--max-wait soon",
        "--order best",
        "--rate 5",
        "--rate 0/1",
        "--rate 1/x",
        "--leave-after inf",
        "--clients 0",
        "--clients 99999999999",
        "--warm-up 1",
        "--seed x",
        "--tenant free",
        "--tenant =1",
        "--tenant free=0",
        "--tenant free=1:x",
        "--tenant free=1 --tenant free=2",
        "--plot picture.pdf",
        "--plot /nowhere/picture.svg",
    ],
)
def test_what_makes_no_sense_is_named(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(*options.split()) == 2
    output = capsys.readouterr()
    option = options.split(maxsplit=1)[0]
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith(f"asyncguard simulate: {option}: expected ")
    assert ", got " in output.err


@pytest.mark.parametrize(("module", "options"), [("rich", ()), ("matplotlib", ("--plot", "picture.svg"))])
def test_a_missing_extra_is_named(
    module: str,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert simulate(*options) == 2
    message = capsys.readouterr().err
    assert f"needs {module}" in message
    assert 'pip install "asyncguard[simulate]"' in message


@pytest.mark.parametrize(("name", "begins"), [("picture.svg", b"<?xml"), ("picture.png", b"\x89PNG")])
def test_it_draws(name: str, begins: bytes, tmp_path: Path) -> None:
    picture = tmp_path / name
    done = run("-m", "asyncguard", "simulate", *LOAD, "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(begins)


def test_a_picture_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.png").mkdir()
    assert simulate("--plot", str(tmp_path / "picture.png")) == 2
    assert "asyncguard simulate: --plot: expected a file that can be written, got" in capsys.readouterr().err


def test_other_commands_and_the_library_do_without_the_extra() -> None:
    code = """
import sys
from asyncguard.cli import main
try:
    main(["--version"])
except SystemExit:
    print(sorted({"rich", "matplotlib", "numpy"} & sys.modules.keys()))
"""
    assert run("-c", code).stdout.splitlines()[-1] == "[]"


def test_an_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asyncguard.commands.simulate.simulate", interrupt)
    assert simulate() == 130
    assert capsys.readouterr().out == ""
