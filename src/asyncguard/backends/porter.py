"""The thread that does for a client of an SQLite file what an event loop mustn't wait for."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import os
import selectors
import sqlite3
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from asyncguard.backends.bell import Bell
from asyncguard.backends.lives import writer_of
from asyncguard.backends.sqlite_store import Store, StoreBusy
from asyncguard.backends.system import Waker, process_namespace, watch_process
from asyncguard.errors import BackendUnavailable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from asyncguard.backends.sqlite import SqliteBackend

T = TypeVar("T")
_log = logging.getLogger("asyncguard")
PATIENCE: Final = 0.5
"""Seconds for which it waits for the file's lock, before it looks around again."""
_NAP: Final = 0.001
_LONG: Final = 5.0
"""Seconds after which it says who keeps the file busy."""
_LOOK_AROUND: Final = 1.0
"""Seconds between two looks, where nothing tells it that there is something to see."""
FAULTS: Final = (sqlite3.Error, OSError, ValueError)
"""What is wrong with a file, as it shows."""


def unavailable(path: Path, fault: object) -> BackendUnavailable:
    """Say what is wrong with a file."""
    error = BackendUnavailable(f"the file {str(path)!r} can't be used: {fault}")
    if isinstance(fault, BaseException):
        error.__cause__ = fault
    return error


def _hear(listener: weakref.ref[SqliteBackend], porter: Porter) -> None:
    """Hear the bell on an event loop, which mustn't keep a backend that is dropped otherwise."""
    if porter.bell is not None and porter.bell.silence():
        porter.look_around()
    backend = listener()
    if backend is not None:
        backend.hear()


@final
class Porter(threading.Thread):
    """Opens the file, does what may take long, watches the other processes, and may hear the bell."""

    def __init__(self, backend: SqliteBackend) -> None:
        super().__init__(name="asyncguard: porter", daemon=True)
        self._backend = weakref.ref(backend, lambda _: self.stop())
        self._path = backend.path
        self._store: Store | None = None
        self._work: deque[tuple[Callable[[Store], Any], concurrent.futures.Future[Any]]] = deque()
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self.bell: Bell | None = None
        self._hears = False
        self._watched: dict[int, int | None] = {}
        self._is_over = False
        self._looks = False
        self._fault: BaseException | None = None
        """Why it ended before its time."""
        self.move_out: Callable[[Store], Iterable[int]] | None = None
        """Ends the client that it has opened the file for, and tells whom to ring."""
        self._attends = False
        self._due = time.monotonic() + _LOOK_AROUND
        """When it next looks whether it missed something, if it attends; however busy it is meanwhile."""
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        """Done once nothing of it is left."""
        self.failed: list[Callable[[Store], object]] = []
        """What has to be done again."""
        self.looks_around = False
        """Whether there are some whose end no descriptor tells."""

    @property
    def is_busy(self) -> bool:
        """Whether something is to be done yet, which nothing may overtake."""
        return bool(self._work)

    def call(self, work: Callable[[Store], T]) -> concurrent.futures.Future[T]:
        """Have it do something, after what it was given before."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._work.append((work, future))
        if self._is_over:
            self._fail()
        self._waker.wake()
        return future

    def attend(self) -> None:
        """Have it look each second whether it missed something, for as long as anybody waits or holds."""
        if not self._attends:
            self._attends = True
            self._waker.wake()

    def look_around(self) -> None:
        """Have it see who came, and who is dead."""
        self._looks = True
        self._waker.wake()

    def hear_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the bell heard on the running loop, if its are the only tickets."""
        if self.bell is not None and self.bell.is_new_to(loop):
            self.bell.hear_on(loop, functools.partial(_hear, self._backend, self))
            self._waker.wake()

    def stop(self) -> None:
        """Have it end."""
        self._is_over = True
        self._waker.wake()

    # --- its thread ----------------------------------------------------------------------------

    def run(self) -> None:
        """Work until it is told to stop."""
        try:
            store = self._open()
            while not self._is_over:
                attends = self.looks_around or self._attends or self.failed
                self._mind_the_bell()
                events = self._selector.select(max(0, self._due - time.monotonic()) if attends else None)
                self._run_once(store, events)
        except (*FAULTS, StoreBusy) as fault:
            self._fault = fault
        except BaseException as fault:  # noqa: BLE001 - it is told to whoever waits
            self._fault = fault
            _log.exception("asyncguard's porter of %s", self._path)
        finally:
            self._is_over = True
            if (backend := self._backend()) is not None:
                backend.dismiss(self)
            self._close()
            self._fail()

    def _open(self) -> Store:
        backend = self._backend()
        if backend is None:
            raise StoreBusy
        store = self._store = backend.open(self)
        if self.bell is not None:
            for client in self.insist(store.clients):
                self.bell.greet(client)
        self._attempt(backend.look_around, store)
        self._do_the_work(store)
        return store

    def insist(self, work: Callable[[], T]) -> T:
        """Do something, for however long others keep the file busy; after a while, say who does.

        Raises:
            StoreBusy: it was told to stop meanwhile.
        """
        began, told = time.monotonic(), False
        while True:
            try:
                return work()
            except StoreBusy:
                if self._is_over:
                    raise
            if not told and time.monotonic() - began > _LONG:
                told = True
                _log.warning(
                    "%s has been inside a step on %s for %g s, and all who use the file wait for it: let it "
                    "go on if it is stopped, or end it",
                    writer_of(self._path),
                    self._path,
                    _LONG,
                )
            time.sleep(_NAP)

    def _mind_the_bell(self) -> None:
        """Hear it as long as no event loop does."""
        hears = self.bell is not None and self.bell.loop is None
        if self.bell is not None and hears != self._hears:
            self._hears = hears
            if hears:
                self._selector.register(self.bell, selectors.EVENT_READ)
            else:
                self._selector.unregister(self.bell)

    def _put_up_the_bell(self) -> None:
        """Have another bell if ours was deleted; it is heard here until a ticket waits."""
        before = self.bell
        with contextlib.suppress(OSError):  # then the look each second has to do
            if before is not None and not before.is_up:
                self.bell = Bell(before.bells, before.client)
                if self._hears:
                    self._hears = False
                    self._selector.unregister(before)
                before.put_away()

    def _ring(self, client: int) -> None:
        if self.bell is not None:
            self.bell.ring(client)

    def _fail(self) -> None:
        """Tell whoever still waits for something."""
        while True:
            try:
                _, future = self._work.popleft()
            except IndexError:  # who gives it something else may be here, too
                return
            error = unavailable(self._path, self._fault or "it is being closed; try again")
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_exception(error)

    def _close(self) -> None:
        if self._store is not None:
            if self.move_out is not None:
                with contextlib.suppress(*FAULTS, StoreBusy):  # then others bury the client
                    for client in self.move_out(self._store):
                        self._ring(client)
            self._store.close()
        for client in list(self._watched):
            self._let_be(client)
        self._selector.close()
        if self.bell is not None:
            self.bell.close()
        self._waker.close()
        self.ended.set_result(None)

    def _run_once(self, store: Store, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        """Do what is to be done; whatever goes wrong with that, the porter goes on."""
        backend = self._backend()
        if backend is None:
            self._is_over = True
            return
        is_due = time.monotonic() >= self._due
        looks, self._looks = self._looks or is_due, False
        if is_due:
            self._due = time.monotonic() + _LOOK_AROUND
            self._put_up_the_bell()
            self._attends = False  # first: whoever comes meanwhile sees it, or is seen
            self._attempt(backend.recheck, store)
            self._attends = self._attends or backend.is_used
            self._try_again(store)
        for key, _ in events:
            if key.fileobj is self._waker:
                self._waker.clear()
            elif self.bell is not None and key.fileobj is self.bell:
                looks = self.bell.silence() or looks
                self._attempt(backend.read_news, store)
            else:
                looks = True
        if looks:
            self._attempt(backend.look_around, store)
        self._do_the_work(store)

    def _do_the_work(self, store: Store) -> None:
        while self._work:
            work, future = self._work[0]
            try:
                result = self.insist(functools.partial(work, store))
            except StoreBusy:
                return
            except FAULTS as fault:
                tell = functools.partial(future.set_exception, unavailable(self._path, fault))
            except BaseException as error:  # noqa: BLE001 - it is told to whoever asked
                tell = functools.partial(future.set_exception, error)
            else:
                tell = functools.partial(future.set_result, result)
            with contextlib.suppress(IndexError):  # who came too late may have been told that all has failed
                self._work.popleft()
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # nobody asks any more
                tell()

    def _attempt(self, work: Callable[[Store], T], store: Store) -> T | None:
        try:
            return self.insist(functools.partial(work, store))
        except StoreBusy:
            return None
        except FAULTS as fault:
            if not self._is_over:  # else that has been said
                _log.warning("%s", unavailable(self._path, fault))
        except Exception:  # noqa: BLE001 - the porter goes on
            _log.exception("asyncguard's porter of %s", self._path)
        if not self._is_over:
            time.sleep(_LOOK_AROUND)  # whatever it was, it isn't over yet
        return None

    def _try_again(self, store: Store) -> None:
        """Do what has failed, and must be done."""
        while self.failed:
            try:
                self.failed[0](store)
            except (*FAULTS, StoreBusy):
                return
            del self.failed[0]

    # --- who lives -----------------------------------------------------------------------------

    @property
    def watched(self) -> set[int]:
        """Those that are watched."""
        return {*self._watched}

    def watch(self, client: int, pid: int, pids: int) -> bool:
        """Watch a client's process; False where the system doesn't let us."""
        if client not in self._watched:
            self._watched[client] = None
            if pids != process_namespace():  # there the same id is somebody else's
                return False
            descriptor = watch_process(pid)
            if descriptor is None:
                return False
            self._watched[client] = descriptor
            self._selector.register(descriptor, selectors.EVENT_READ)
        return self._watched[client] is not None

    def forget(self, client: int) -> None:
        """Watch one no more that is gone."""
        self._let_be(client)
        if self.bell is not None:
            self.bell.take_down(client)

    def _let_be(self, client: int) -> None:
        descriptor = self._watched.pop(client, None)
        if descriptor is not None:
            self._selector.unregister(descriptor)
            os.close(descriptor)
