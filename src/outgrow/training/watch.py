"""How the processes of a run end together.

A process that fails leaves its reason in the store that the launcher keeps; the others find it there and end too, and
the main process says it. Where a process was killed, the others find out who does not answer.
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
"""Seconds that a process has to end in order, and twice what the others have to answer a roll call."""
LOOK = 0.5
"""Seconds between looks at the store."""
FAILED, CALL = "outgrow/failed", "outgrow/call"
COLLECTIVE = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out")
"""Words of the errors that collectives raise where another process is not there."""


class Reason(NamedTuple):
    """Why a process ends: what to say, and the exit code."""

    text: str
    code: int


class Ended(BaseException):
    """Raised in the main thread when another process has failed, or when this one is told to end."""


def lost_another(error: BaseException) -> bool:
    """Whether ``error`` is what a collective raises when another process is not there."""
    text = str(error).lower()
    return launched() > 1 and isinstance(error, RuntimeError) and any(word in text for word in COLLECTIVE)


class Watch:
    """Ends this process when another one has failed, with that one's reason on the main process.

    ``show`` prints a line; ``lost`` is the exit code where a process was killed, ``told`` that of one that was told
    to end.
    """

    def __init__(self, show: Callable[[str], None], *, lost: int, told: int) -> None:
        self.show, self.lost, self.told = show, lost, told
        self.ending = False
        self.signalled, self.left = threading.Event(), threading.Event()
        self.board: dist.Store | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Watch while the command works; nothing to do for one process."""
        if launched() == 1:
            yield
            return
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        handler = signal.signal(signal.SIGTERM, self._raise)
        # Python's handlers run between two of its steps; the byte comes while a collective waits, too
        woken = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        looking = threading.Thread(target=self._look, args=(reading,), daemon=True)
        looking.start()
        try:
            yield
        finally:
            self.ending = True
            self.left.set()
            looking.join()  # the store must not go while it is asked
            signal.set_wakeup_fd(woken)
            signal.signal(signal.SIGTERM, handler)

    def failed(self, reason: Reason) -> int:
        """This process ends for a reason of its own: say it where it is read, and leave it for the others."""
        self.ending = True
        if is_main():
            self._keep(reason)
            self._say(reason.text)
        elif not self._keep(_of_rank(reason)) and not self.signalled.wait(GRACE):
            # no store yet; were all to fail alike, the main process would have said it and the launcher ended this one
            self._say(_of_rank(reason).text)
        return reason.code

    def lost_others(self, error: BaseException | None = None) -> int:
        """Another process has failed, or this one was told to end: find out why, and say it on one process."""
        self.ending = True
        reason, speaks = self._find_out(error)
        if speaks:
            self._say(reason.text)
        return reason.code

    def _say(self, text: str) -> None:
        """On the terminal, and in torchrun's own report of what failed."""
        self.show(text)
        if (report := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
            message = {
                "message": text,
                "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))},
            }
            with suppress(OSError):
                Path(report).write_text(json.dumps({"message": message}))

    def _find_out(self, error: BaseException | None) -> tuple[Reason, bool]:
        until = time.monotonic() + GRACE / 2
        while (found := self._kept()) is None and time.monotonic() < until:
            time.sleep(0.05)
        if found is not None:
            return found, is_main()
        if self._store() is None:  # not begun: who failed has said so itself
            return Reason("", self.told), False
        answered = self._roll_call()
        missing = [other for other in range(launched()) if other not in answered]
        if missing:
            which = " and ".join(map(str, missing))
            text = (
                f"needs all {launched()} processes, got no answer of process {which}: killed (out of memory?), or its "
                "machine is gone; the system's log (dmesg) may say why, and --resume continues the run."
            )
            return Reason(text, self.lost), rank() == min(answered)
        if error is None:
            text = "told to end (SIGTERM); --resume continues a run from its last checkpoint"
            return Reason(text, self.told), is_main()
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        text = (
            f"needs all {launched()} processes to answer each other, got {line}; --resume continues the run."
        )
        return Reason(text, self.lost), is_main()

    def _look(self, woken: socket.socket) -> None:
        """In a thread: end the main thread in order, and the process where that does not come about."""
        while not self.signalled.is_set() and not self.left.is_set():
            if select.select([woken], [], [], LOOK)[0] and signal.SIGTERM in woken.recv(4096):
                self.signalled.set()
            elif self._there(FAILED):
                self.signalled.set()
                if not self.ending:
                    os.kill(os.getpid(), signal.SIGTERM)
            self._answer()
        until = time.monotonic() + GRACE
        while time.monotonic() < until and not self.left.wait(0.1):
            self._answer()
        if not self.ending:  # it waits in a collective
            os._exit(self.lost_others())

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self.ending:
            self.ending = True
            raise Ended

    def _store(self) -> dist.Store | None:
        if self.board is None and dist.is_available() and dist.is_initialized():
            self.board = dist.distributed_c10d._get_default_store()
        return self.board

    def _keep(self, reason: Reason) -> bool:
        """Leave ``reason`` for the others; the first one stays. False where there is no store."""
        store = self._store()
        try:
            if store is not None:
                store.compare_set(FAILED, "", f"{reason.code} {reason.text}")
        except RuntimeError:
            return False
        return store is not None

    def _kept(self) -> Reason | None:
        if not self._there(FAILED) or self.board is None:
            return None
        code, _, text = self.board.get(FAILED).decode().partition(" ")
        return Reason(text, int(code))

    def _roll_call(self) -> set[int]:
        """The ranks that answer."""
        try:
            if (store := self._store()) is not None:
                store.set(CALL, "1")
                self._answer()
                time.sleep(GRACE / 2)
                return {other for other in range(launched()) if store.check([_alive(other)])}
        except RuntimeError:  # the store went with the process that kept it
            return set(range(1, launched()))
        return set(range(launched()))

    def _answer(self) -> None:
        if self._there(CALL) and self.board is not None:
            self.board.set(_alive(rank()), "1")

    def _there(self, key: str) -> bool:
        store = self._store()
        try:
            return store is not None and bool(store.check([key]))
        except RuntimeError:  # it went with the process that kept it
            return False


def _alive(number: int) -> str:
    return f"outgrow/alive/{number}"


def _of_rank(reason: Reason) -> Reason:
    return reason._replace(text=f"process {rank()} of {launched()}: {reason.text}")
