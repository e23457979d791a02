"""Channels on Linux: tasks over a SOCK_SEQPACKET pair, results over a SOCK_STREAM pair.

The parent keeps a copy of the worker's end of the task pair, so a recall is the parent receiving
first: the kernel gives each message to exactly one of the two.

Assumptions, each checked by a test:

- a SEQPACKET message is received whole by one reader;
- MSG_DONTWAIT is per call. O_NONBLOCK must never be set here: it would belong to the open file
  description, which the worker shares;
- descriptors in flight are counted against RLIMIT_NOFILE: ours are few (large tasks only) and
  are closed as soon as they are sent.

`_socket` instead of `socket`: the latter costs several ms of imports (DESIGN 6) and adds nothing
that is used here.
"""

from __future__ import annotations

import _socket
import os
from array import array
from errno import EMFILE
from fcntl import F_DUPFD_CLOEXEC, fcntl

from .protocol import (
    INLINE_LIMIT,
    MESSAGE_LIMIT,
    SETTINGS_HEAD,
    TASK_IN_FD,
    pack_message,
    pack_settings,
    settings_length,
    unpack_message,
)

_DONTWAIT = _socket.MSG_DONTWAIT
_RECALL = _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
_FD_ROOM = _socket.CMSG_SPACE(4)
# Received at a time: what a socket's buffer can hold, if a large result is on the way; else less
# than what makes malloc ask the kernel for memory, which would triple the cost of a small reply.
_LARGE_PIECE = 256 * 1024
_PIECE = 64 * 1024


class InlinePayload:
    """A payload that travels inside its message."""

    __slots__ = ("data", "size")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def close(self) -> None:
        """Nothing to let go of."""


class DescriptorPayload:
    """A large payload: anonymous memory whose descriptor travels with the message."""

    __slots__ = ("fd", "size")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size if fd >= 0 else 0  # -1: it was lost, see `recall`

    def close(self) -> None:
        """Close this side's descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    __del__ = close


def make_payload(data: bytes) -> InlinePayload | DescriptorPayload:
    """Choose how these pickled bytes travel."""
    if len(data) <= INLINE_LIMIT:
        return InlinePayload(data)
    fd = anonymous_file("loky-task")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return DescriptorPayload(fd)


def anonymous_file(name: str) -> int:
    """Open a file without a name in the file system, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return above_std(os.memfd_create(name))
    import tempfile

    shm = "/dev/shm"
    where = shm if os.access(shm, os.W_OK) else None
    with tempfile.TemporaryFile(buffering=0, dir=where) as file:
        return fcntl(file.fileno(), F_DUPFD_CLOEXEC, 3)


def above_std(fd: int) -> int:
    """Move a descriptor away from 0-2.

    A user may have closed those; whatever prints to descriptor 1 must not reach a channel.
    """
    if fd > 2:
        return fd
    moved: int = fcntl(fd, F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def _pair(kind: int) -> tuple[_socket.socket, _socket.socket]:
    one, other = _socket.socketpair(_socket.AF_UNIX, kind)
    if one.fileno() <= 2 or other.fileno() <= 2:
        one = _socket.socket(fileno=above_std(one.detach()))
        other = _socket.socket(fileno=above_std(other.detach()))
    return one, other


class LinuxChannel:
    """See `channel.Channel`."""

    __slots__ = ("_results", "_results_there", "_tasks", "_tasks_there", "sender")

    can_recall = True
    sender_flags: tuple[int, ...] = (_DONTWAIT,)

    def __init__(self) -> None:
        self._tasks, self._tasks_there = _pair(_socket.SOCK_SEQPACKET)
        try:
            self._results, there = _pair(_socket.SOCK_STREAM)
        except BaseException:
            self._tasks.close()
            self._tasks_there.close()
            raise
        self._results_there: _socket.socket | None = there
        self.sender = self._tasks.send

    def send(
        self,
        kind: int,
        task_id: int,
        payload: InlinePayload | DescriptorPayload | None,
        prefix: bytes,
    ) -> bool:
        try:
            if payload is None:
                self._tasks.send(pack_message(kind, task_id, b"", prefix), _DONTWAIT)
            elif isinstance(payload, InlinePayload):
                self._tasks.send(pack_message(kind, task_id, payload.data, prefix), _DONTWAIT)
            elif payload.fd < 0:
                raise OSError(EMFILE, "no descriptor was left to take the task back for another")
            else:
                rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", [payload.fd]))
                message = pack_message(TASK_IN_FD, task_id, b"", prefix)
                self._tasks.sendmsg([message], [rights], _DONTWAIT)
                payload.close()
        except BlockingIOError:
            return False
        return True

    def recall(self) -> list[tuple[int, int, InlinePayload | DescriptorPayload]]:
        unread: list[tuple[int, int, InlinePayload | DescriptorPayload]] = []
        while True:
            try:
                message, rights, _, _ = self._tasks_there.recvmsg(MESSAGE_LIMIT, _FD_ROOM, _RECALL)
            except BlockingIOError:
                return unread
            if not message:
                return unread
            kind, task_id, _, payload = unpack_message(memoryview(message))
            if kind == TASK_IN_FD:
                # Out of descriptors, the kernel has dropped this one: sending it again will fail.
                fd = _fd_in(rights) if rights else -1
                unread.append((kind, task_id, DescriptorPayload(fd)))
            else:
                unread.append((kind, task_id, InlinePayload(bytes(payload))))

    def receive(self, expected: int = 0) -> bytes | None:
        try:
            size = _PIECE if expected < _PIECE else _LARGE_PIECE
            return self._results.recv(size, _DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionError:  # the worker died with settings or a descriptor unread
            return b""

    def send_settings(self, blob: bytes) -> None:
        # Written before the worker starts, so it must fit the socket's buffer, or go by descriptor.
        if len(blob) <= INLINE_LIMIT:
            self._results.sendall(pack_settings(blob))
        else:
            payload = make_payload(blob)
            assert isinstance(payload, DescriptorPayload)
            self._results.sendall(pack_settings(b""))
            self.send_descriptor(payload.fd)
            payload.close()

    def send_descriptor(self, fd: int) -> None:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", [fd]))
        self._results.sendmsg([b"\0"], [rights] if fd >= 0 else [], _DONTWAIT)

    def fileno(self) -> int:
        return self._results.fileno()

    def worker_fds(self) -> tuple[int, int]:
        assert self._results_there is not None
        return self._tasks_there.fileno(), self._results_there.fileno()

    def started(self) -> None:
        if self._results_there is not None:
            self._results_there.close()
            self._results_there = None

    def close(self) -> None:
        self.started()
        self._tasks.close()
        self._tasks_there.close()
        self._results.close()


class LinuxWorkerEnd:
    """See `channel.WorkerEnd`."""

    def __init__(self, tasks_fd: int, results_fd: int) -> None:
        self._tasks = _socket.socket(fileno=tasks_fd)
        self._results = _socket.socket(fileno=results_fd)
        self._buffer = memoryview(bytearray(MESSAGE_LIMIT))  # one for all: no allocation a message

    def receive(self) -> tuple[int, int, memoryview, memoryview | bytearray | None]:
        size, rights, _, _ = self._tasks.recvmsg_into(
            [self._buffer], _FD_ROOM, _socket.MSG_CMSG_CLOEXEC
        )
        if not size:
            raise EOFError("the parent has closed the line")
        kind, task_id, prefix, payload = unpack_message(self._buffer[:size])
        if kind == TASK_IN_FD:
            # Without the rights the kernel could not install the descriptor (MSG_CTRUNC).
            return kind, task_id, prefix, _read_all(_fd_in(rights)) if rights else None
        return kind, task_id, prefix, payload

    def send(self, head: bytes, payload: bytes = b"") -> None:
        if len(payload) <= INLINE_LIMIT:
            self._results.sendall(head + payload)
        else:
            self._results.sendall(head)
            self._results.sendall(payload)

    def receive_settings(self) -> bytes:
        length = settings_length(self._receive_exactly(SETTINGS_HEAD))
        if length:
            return self._receive_exactly(length)
        return bytes(_read_all(self.receive_descriptor()) or b"")

    def receive_descriptor(self) -> int:
        _, rights, _, _ = self._results.recvmsg(1, _FD_ROOM, _socket.MSG_CMSG_CLOEXEC)
        return _fd_in(rights) if rights else -1

    def close(self) -> None:
        self._tasks.close()
        self._results.close()

    def _receive_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._results.recv(size - len(data))
            if not piece:
                raise EOFError("the parent has closed the line")
            data += piece
        return data


def _fd_in(rights: list[tuple[int, int, bytes]]) -> int:
    return array("i", rights[0][2])[0]


def _read_all(fd: int) -> bytearray | None:
    """Read a payload's descriptor from its start, and close it; ``None`` without memory for it."""
    try:
        size = os.fstat(fd).st_size
        try:
            data = bytearray(size)
        except MemoryError:
            return None
        done = 0
        with memoryview(data) as view:
            while done < size:
                done += os.preadv(fd, [view[done:]], done)
        return data
    finally:
        os.close(fd)
