"""Histories in files: a line of JSON for each record, a file for each process."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from asyncguard.testing.history._record import Record

if TYPE_CHECKING:
    from types import TracebackType

    from asyncguard.testing.history._record import Kind


@final
class Recorder:
    """Notes in a file what happens to one process.

    Each record is written at once and whole, by one call of the system, so one that was written stays
    written if the process is killed. That takes some 10 us, on the event loop too.

    Raises:
        OSError: the file can't be opened.
    """

    def __init__(self, path: str | os.PathLike[str], client: str) -> None:
        self.client = client
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, kind: Kind, ticket: str | None = None, *, client: str | None = None, **more: Any) -> None:
        """Note something now; `more` is what else a `Record` of the kind has.

        `client` is for what one process does to another.

        Raises:
            ValueError, TypeError: it isn't a record.
            OSError: it can't be written.
        """
        record = Record(
            kind=kind, at=time.monotonic_ns(), client=client or self.client, ticket=ticket, **more
        )
        os.write(self._file, json.dumps(record.as_json(), separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read(*paths: str | os.PathLike[str]) -> list[Record]:
    """Read the records of all files, in the order of their moments.

    Raises:
        OSError: a file can't be read.
        ValueError: a line isn't a record; it says which and why.
    """
    records = [
        _record(line, path, number)
        for path in map(Path, paths)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
    ]
    records.sort(key=lambda record: record.at)
    return records


def _record(line: str, path: Path, number: int) -> Record:
    try:
        return Record(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}, line {number}: expected a record, got {line!r}: {error}") from error
