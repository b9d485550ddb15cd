"""End all processes of a run when one of them fails.

A process that fails writes its reason to the launcher's store. The others read it and end too, and the main process
prints it. If a process was killed, the others find the rank that does not respond.
"""

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch.distributed as dist

from outgrow.training.processes import is_main, launched, rank

GRACE = 3.0
"""Seconds that a process has to end cleanly. The others have half of it to respond to a roll call."""
POLL = 0.5
"""Seconds between reads of the store."""
FAILED, CALL = "outgrow/failed", "outgrow/call"
COLLECTIVE = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out")
"""Phrases in the errors that collectives raise when another process is gone."""


class Reason(NamedTuple):
    """Why a process ends: the message and the exit code."""

    text: str
    code: int


class Ended(BaseException):
    """Raised in the main thread when another process has failed, or when this one receives SIGTERM."""


def lost_another(error: BaseException) -> bool:
    """Whether ``error`` is one that a collective raises when another process is gone."""
    text = str(error).lower()
    return launched() > 1 and isinstance(error, RuntimeError) and any(word in text for word in COLLECTIVE)


class Watch:
    """Ends this process when another one has failed; the main process prints the reason.

    ``show`` prints a line. ``lost`` is the exit code if a process was killed, ``terminated`` the one after SIGTERM.
    """

    def __init__(self, show: Callable[[str], None], *, lost: int, terminated: int) -> None:
        self.show, self.lost, self.terminated = show, lost, terminated
        self.ending = False
        self.signalled, self.finished = threading.Event(), threading.Event()
        self.store: dist.Store | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Context that watches the other processes; does nothing for one process."""
        if launched() == 1:
            yield
            return
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        handler = signal.signal(signal.SIGTERM, self._raise_ended)
        # Python runs handlers between bytecodes only; the wake-up byte also arrives while a collective blocks
        woken = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        poller = threading.Thread(target=self._poll, args=(reading,), daemon=True)
        poller.start()
        try:
            yield
        finally:
            self.ending = True
            self.finished.set()
            poller.join()  # the store must not be closed during a read
            signal.set_wakeup_fd(woken)
            signal.signal(signal.SIGTERM, handler)

    def failed(self, reason: Reason) -> int:
        """This process fails: print the reason, and store it for the others."""
        self.ending = True
        if is_main():
            self._store_reason(reason)
            self._print(reason.text)
        elif not self._store_reason(_of_rank(reason)) and not self.signalled.wait(GRACE):
            # no store yet; if all fail alike, the main process prints the reason and the launcher ends this process
            self._print(_of_rank(reason).text)
        return reason.code

    def lost_others(self, error: BaseException | None = None) -> int:
        """Another process has failed, or this one received SIGTERM: find the reason, and print it on one process."""
        self.ending = True
        reason, prints = self._find_reason(error)
        if prints:
            self._print(reason.text)
        return reason.code

    def _print(self, text: str) -> None:
        """Print ``text``, and pass it to the failure report of torchrun."""
        self.show(text)
        if (report := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
            message = {
                "message": text,
                "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))},
            }
            with suppress(OSError):
                Path(report).write_text(json.dumps({"message": message}))

    def _find_reason(self, error: BaseException | None) -> tuple[Reason, bool]:
        until = time.monotonic() + GRACE / 2
        while (found := self._stored_reason()) is None and time.monotonic() < until:
            time.sleep(0.05)
        if found is not None:
            return found, is_main()
        if self._default_store() is None:  # not started: the failed process has printed its reason
            return Reason("", self.terminated), False
        responded = self._roll_call()
        missing = [other for other in range(launched()) if other not in responded]
        if missing:
            which = " and ".join(map(str, missing))
            text = (
                f"needs all {launched()} processes, got no response from process {which}, which was killed (out of memory?) "
                "or lost its machine; see the system log (dmesg) for the reason, and continue the run with --resume."
            )
            return Reason(text, self.lost), rank() == min(responded)
        if error is None:
            text = "terminated by SIGTERM; --resume continues a run from its last checkpoint"
            return Reason(text, self.terminated), is_main()
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        text = f"needs all {launched()} processes to communicate, got {line}; continue the run with --resume."
        return Reason(text, self.lost), is_main()

    def _poll(self, woken: socket.socket) -> None:
        """Runs in a thread: interrupt the main thread, and kill the process if that has no effect."""
        while not self.signalled.is_set() and not self.finished.is_set():
            if select.select([woken], [], [], POLL)[0] and signal.SIGTERM in woken.recv(4096):
                self.signalled.set()
            elif self._has(FAILED):
                self.signalled.set()
                if not self.ending:
                    os.kill(os.getpid(), signal.SIGTERM)
            self._respond()
        until = time.monotonic() + GRACE
        while time.monotonic() < until and not self.finished.wait(0.1):
            self._respond()
        if not self.ending:  # it is blocked in a collective
            os._exit(self.lost_others())

    def _raise_ended(self, number: int, frame: FrameType | None) -> None:
        if not self.ending:
            self.ending = True
            raise Ended

    def _default_store(self) -> dist.Store | None:
        if self.store is None and dist.is_available() and dist.is_initialized():
            self.store = dist.distributed_c10d._get_default_store()
        return self.store

    def _store_reason(self, reason: Reason) -> bool:
        """Store ``reason`` for the others; the first one is kept. False without a store."""
        store = self._default_store()
        try:
            if store is not None:
                store.compare_set(FAILED, "", f"{reason.code} {reason.text}")
        except RuntimeError:
            return False
        return store is not None

    def _stored_reason(self) -> Reason | None:
        if not self._has(FAILED) or self.store is None:
            return None
        code, _, text = self.store.get(FAILED).decode().partition(" ")
        return Reason(text, int(code))

    def _roll_call(self) -> set[int]:
        """The ranks that respond."""
        try:
            if (store := self._default_store()) is not None:
                store.set(CALL, "1")
                self._respond()
                time.sleep(GRACE / 2)
                return {other for other in range(launched()) if store.check([_alive(other)])}
        except RuntimeError:  # the store ended with the process that hosted it
            return set(range(1, launched()))
        return set(range(launched()))

    def _respond(self) -> None:
        if self._has(CALL) and self.store is not None:
            self.store.set(_alive(rank()), "1")

    def _has(self, key: str) -> bool:
        store = self._default_store()
        try:
            return store is not None and bool(store.check([key]))
        except RuntimeError:  # it ended with the process that hosted it
            return False


def _alive(number: int) -> str:
    return f"outgrow/alive/{number}"


def _of_rank(reason: Reason) -> Reason:
    return reason._replace(text=f"process {rank()} of {launched()}: {reason.text}")
