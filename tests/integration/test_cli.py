"""The command, as people run it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import pytest

import asyncguard
from asyncguard.cli import main

from .servers import Servers, clean_environ


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asyncguard", *arguments],
        env=clean_environ(**settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_it_is_installed() -> None:
    command = Path(sys.executable).with_name("asyncguard")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == f"asyncguard {asyncguard.__version__}\n"


def test_it_runs_as_a_module() -> None:
    assert run("--version").stdout == f"asyncguard {asyncguard.__version__}\n"


def test_it_serves(servers: Servers) -> None:
    server = servers.start("asyncguard", "serve", "--port", "0", ASYNCGUARD_WORK_SECONDS="0.01")
    answer = httpx.get(f"{server.url}/test")
    assert answer.status_code == 200
    assert answer.json()["elapsed"] >= 0.01


def test_a_stop_waits_for_the_work_and_not_for_the_queue(servers: Servers) -> None:
    server = servers.start("asyncguard", "serve", "--port", "0", ASYNCGUARD_WORK_SECONDS="1")
    with httpx.Client(base_url=server.url, timeout=30) as client, ThreadPoolExecutor(20) as threads:
        callers = [threads.submit(client.get, "/test") for _ in range(20)]
        served = next(as_completed(callers)).result()
        server.process.terminate()
        server.process.wait(10)  # seconds; the queue would take twenty
    assert served.status_code == 200
    answers = [caller.result() for caller in callers]
    assert {answer.status_code for answer in answers} == {200, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) >= 17
    assert {answer.json()["reason"] for answer in refused} == {"draining"}


def test_a_port_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "99999"]) == 2
    assert "--port: expected 0 to 65535, got 99999" in capsys.readouterr().err


def test_it_listens_on_the_loopback_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    usage = " ".join(capsys.readouterr().out.split())
    assert "(default: 127.0.0.1)" in usage
    assert "(default: 8000)" in usage


def test_workers_in_memory_are_refused() -> None:
    done = run("serve", "--workers", "2", "--port", "0", ASYNCGUARD_URL="memory:")
    assert done.returncode == 2
    assert "--workers 2: several workers need a shared backend" in done.stderr
    assert "ASYNCGUARD_URL=sqlite:///" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_workers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--workers", "0"]) == 2
    assert "--workers: expected 1 or more, got 0" in capsys.readouterr().err


def test_a_bad_setting_is_named() -> None:
    done = run("serve", "--port", "0", ASYNCGUARD_WORK_SECONDS="soon")
    assert done.returncode == 2
    assert done.stderr == (
        "asyncguard serve: ASYNCGUARD_WORK_SECONDS: expected a number of seconds, 0 or more, got 'soon'\n"
    )


def test_an_unknown_backend_is_named() -> None:
    done = run("serve", "--port", "0", ASYNCGUARD_URL="carrier-pigeon://loft")
    assert done.returncode == 2
    assert "carrier-pigeon" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    message = capsys.readouterr().err
    assert "the service needs uvicorn" in message
    assert 'pip install "asyncguard[service]"' in message


def test_no_command_is_a_usage_error() -> None:
    done = run()
    assert done.returncode == 2
    assert "usage: asyncguard" in done.stderr


def test_the_library_imports_nothing_but_the_standard_library() -> None:
    code = """
import sys
before = set(sys.modules)
import asyncguard
new = {name.partition(".")[0] for name in sys.modules.keys() - before}
print(sorted(new - sys.stdlib_module_names - {"asyncguard"}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "[]\n"
