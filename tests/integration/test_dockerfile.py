"""The steps of the Dockerfile, carried out in a clean directory and environment instead of an image."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import venv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import pytest

from .servers import ROOT, Servers, clean_environ

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Step:
    keyword: str
    text: str


def read_steps() -> list[Step]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [Step(*line.split(maxsplit=1)) for line in lines if line]


STEPS = read_steps()


def texts(keyword: str) -> list[str]:
    return [step.text for step in STEPS if step.keyword == keyword]


def is_in_context(path: Path) -> bool:
    """Decide by .dockerignore, whose last matching line counts, whether a file is sent to the engine."""
    name = path.relative_to(ROOT).as_posix()
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        variants = (pattern, f"{pattern}/*", pattern.removeprefix("**/"), f"{pattern}/*")
        if any(fnmatch.fnmatch(name, variant) for variant in variants):
            sent = line.startswith("!")
    return sent


def copy(sources: list[str], target: Path) -> None:
    for source in sources:
        path = ROOT / source
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        sent = [file for file in files if is_in_context(file)]
        assert sent, f"COPY {source}: .dockerignore leaves nothing of it"
        for file in sent:
            to = target / file.relative_to(ROOT if path.is_file() else path)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)


@pytest.mark.slow
@pytest.mark.timeout(300)  # it installs from the package index, twice
def test_its_steps_lead_to_a_service(tmp_path: Path, servers: Servers) -> None:
    image = tmp_path / "image"
    workdir = image / "app"
    workdir.mkdir(parents=True)
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    environ = clean_environ(PATH=f"{binaries}{os.pathsep}{os.environ['PATH']}")
    for step in STEPS:
        match step.keyword:
            case "WORKDIR":
                assert step.text == "/app"
            case "COPY":
                *sources, target = step.text.split()
                copy(sources, workdir / target)
            case "RUN" if step.text.startswith(("pip ", "python ")):
                subprocess.run(step.text, shell=True, cwd=workdir, env=environ, check=True)  # noqa: S602
    command, *arguments = json.loads(texts("CMD")[-1])
    assert command == "asyncguard"
    assert arguments == ["serve", "--host", "0.0.0.0", "--port", "8000"]  # noqa: S104
    service = servers.start(
        "asyncguard",
        *("0" if argument == "8000" else argument for argument in arguments),
        cwd=tmp_path,
        python=str(binaries / "python"),
        ASYNCGUARD_WORK_SECONDS="0.01",
    )
    assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{service.url}/test").status_code == 200
    check = json.loads(texts("HEALTHCHECK")[0].partition("CMD ")[2])
    ask = [argument.replace(":8000", f":{service.port}") for argument in check]
    assert subprocess.run(ask, env=environ, check=False).returncode == 0
    service.stop()
    assert subprocess.run(ask, env=environ, check=False, stderr=subprocess.DEVNULL).returncode != 0


def test_dependencies_have_a_layer_of_their_own() -> None:
    steps = [(step.keyword, step.text) for step in STEPS]
    installs = [number for number, (keyword, text) in enumerate(steps) if keyword == "RUN" and "pip" in text]
    sources = next(number for number, (_, text) in enumerate(steps) if text.startswith("src "))
    assert installs[0] < sources < installs[1]
    assert "--no-deps" in steps[installs[1]][1]


def test_it_does_not_run_as_root() -> None:
    assert texts("USER")[-1] not in ("root", "0")
    keywords = [step.keyword for step in STEPS]
    assert keywords.index("USER") < keywords.index("CMD")


def test_what_is_built_here_is_not_sent() -> None:
    for name in (
        ".venv/bin/python",
        ".git/config",
        "src/asyncguard/__pycache__/hub.pyc",
        "tests/conftest.py",
    ):
        assert not is_in_context(ROOT / name), name
    assert is_in_context(ROOT / "src" / "asyncguard" / "py.typed")
