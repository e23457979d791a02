"""Messages to bytes and back, and the channel: what is sent is read or recalled, never both.

The channel's two ends are used within this process, the worker's by a thread where the two have to
race. Real workers are the subject of other files.
"""

from __future__ import annotations

import os
import random
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loky.wire import protocol
from loky.wire.channel import make_payload, open_channel, open_worker_end
from loky.wire.protocol import (
    EXIT,
    FRAME_HEAD,
    INLINE_LIMIT,
    PREFIX_LIMIT,
    TASK,
    TASK_IN_FD,
    FrameReader,
)

LARGE = INLINE_LIMIT * 40

# ---------------------------------------------------------------------- protocol

ids = st.integers(0, 2**64 - 1)


@given(st.integers(0, 255), ids, st.binary(), st.binary())
@example(TASK, 2**64 - 1, b"p" * INLINE_LIMIT, b"x" * PREFIX_LIMIT)
def test_a_message_comes_back_as_it_was(
    kind: int, task_id: int, payload: bytes, prefix: bytes
) -> None:
    packed = protocol.pack_message(kind, task_id, payload, prefix)
    assert len(packed) <= protocol.MESSAGE_LIMIT
    back = protocol.unpack_message(memoryview(packed))
    assert (back[0], back[1], bytes(back[2]), bytes(back[3])) == (kind, task_id, prefix, payload)


payloads = st.one_of(
    st.binary(max_size=80),
    st.integers(INLINE_LIMIT - 2, INLINE_LIMIT + 2).map(lambda size: b"L" * size),
)
frames = st.tuples(st.integers(1, 8), ids, st.integers(0, 2**32 - 1), payloads)


def on_the_stream(frame: tuple[int, int, int, bytes]) -> bytes:
    kind, task_id, micros, payload = frame
    return protocol.frame_head(kind, task_id, len(payload), (micros + 0.5) * 1e-6) + payload


def plain(frame: Any) -> tuple[int, int, int, bytes]:
    kind, task_id, seconds, payload = frame
    return kind, task_id, round(seconds * 1e6), bytes(payload)


@given(st.lists(frames, max_size=6), st.data())
@settings(max_examples=60)
def test_frames_come_back_however_the_stream_is_cut(
    sent: list[tuple[int, int, int, bytes]], data: Any
) -> None:
    stream = b"".join(map(on_the_stream, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = FrameReader()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if start < end:
            got += map(plain, reader.feed(stream[start:end]))
    assert got == sent


def test_frames_come_back_byte_by_byte_and_as_soon_as_they_are_complete() -> None:
    sent = [(1, 7, 0, b""), (2, 2**64 - 1, 5, b"abc"), (3, 0, 2**32 - 1, b"x" * 50)]
    reader = FrameReader()
    for frame in sent:
        stream = on_the_stream(frame)
        got = [[plain(f) for f in reader.feed(stream[i : i + 1])] for i in range(len(stream))]
        assert got[:-1] == [[]] * (len(stream) - 1)
        assert got[-1] == [frame]


def test_a_large_frame_is_not_joined_once_per_piece() -> None:
    size = 20_000_000
    stream = on_the_stream((2, 1, 0, b"z" * size))
    reader = FrameReader()
    pieces = [stream[i : i + 4096] for i in range(0, len(stream), 4096)]
    # About 5000 pieces: joining each time would copy 50 GB, which the test's time limit forbids.
    got = [plain(frame) for piece in pieces for frame in reader.feed(piece)]
    assert [len(frame[3]) for frame in got] == [size]


def test_a_time_too_long_for_its_field_is_cut() -> None:
    head = protocol.frame_head(2, 1, 0, 1e9)
    assert len(head) == FRAME_HEAD
    ((_, _, seconds, _),) = FrameReader().feed(head)
    assert seconds == pytest.approx((2**32 - 1) * 1e-6)


@given(st.text(st.characters(), max_size=50), st.binary(max_size=50), st.binary(max_size=50))
def test_an_error_comes_back_as_it_was(text: str, summary: bytes, pickled: bytes) -> None:
    packed = protocol.pack_error(text, summary, pickled)
    got_text, *rest = protocol.unpack_error(memoryview(packed))
    assert rest == [summary, pickled]
    assert got_text == text.encode("utf-8", "backslashreplace").decode()


# ---------------------------------------------------------------------- channel


class Line:
    """Both ends of a channel."""

    def __init__(self) -> None:
        self.parent = open_channel()
        self.worker = open_worker_end(*map(os.dup, self.parent.worker_fds()))
        self.parent.started()

    def close(self) -> None:
        self.parent.close()
        self.worker.close()

    def send(self, task_id: int, data: bytes = b"data", prefix: bytes = b"") -> bool:
        return self.parent.send(TASK, task_id, make_payload(data), prefix)

    def read(self) -> tuple[int, int, bytes, bytes]:
        """The next message, which must be there already."""
        kind, task_id, prefix, payload = self.worker.receive()
        assert payload is not None
        return kind, task_id, bytes(prefix), bytes(payload)

    def send_until_full(self, first: int = 0, data: bytes = b"data") -> int:
        task_id = first
        while self.send(task_id, data):
            task_id += 1
            assert task_id < 100_000
        return task_id


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def line() -> Iterator[Line]:
    before = descriptors()
    line = Line()
    yield line
    line.close()
    assert descriptors() == before, "descriptors were left open"


def test_what_is_sent_is_read(line: Line) -> None:
    assert line.send(5, b"abc", b"prefix")
    assert line.read() == (TASK, 5, b"prefix", b"abc")
    assert line.parent.send(EXIT, 0, None, b"")
    assert line.read() == (EXIT, 0, b"", b"")
    assert line.parent.recall() == []


def test_send_refuses_when_full_and_loses_nothing(line: Line) -> None:
    count = line.send_until_full()
    assert count >= 10
    assert not line.send(count), "still full"
    assert [line.read()[1] for _ in range(count // 2)] == list(range(count // 2))
    assert line.send(count), "room again"
    rest = [line.read()[1] for _ in range(count - count // 2 + 1)]
    assert rest == list(range(count // 2, count + 1))


def test_recall_returns_exactly_what_was_not_read(line: Line) -> None:
    count = line.send_until_full()
    for _ in range(3):
        line.read()
    unread = line.parent.recall()
    assert [task_id for _, task_id, _ in unread] == list(range(3, count))
    assert {payload.data for _, _, payload in unread} == {b"data"}  # type: ignore[attr-defined]
    assert line.parent.recall() == []
    # And the worker never sees any of it.
    line.send(-1 % 2**64)
    assert line.read()[1] == 2**64 - 1


def test_a_full_inline_message_with_a_full_prefix_can_be_sent(line: Line) -> None:
    data, prefix = os.urandom(INLINE_LIMIT), os.urandom(PREFIX_LIMIT)
    assert line.send(1, data, prefix)
    ((kind, task_id, payload),) = line.parent.recall()
    assert (kind, task_id, payload.data) == (TASK, 1, data)  # type: ignore[attr-defined]
    assert line.parent.send(TASK, 1, payload, prefix)
    assert line.read() == (TASK, 1, prefix, data)


@pytest.mark.parametrize("large_every", [0, 50])
def test_racing_recalls_lose_nothing_and_give_nothing_twice(line: Line, large_every: int) -> None:
    total = 5000
    seen: list[int] = []
    wrong: list[int] = []
    large = os.urandom(INLINE_LIMIT + 1)

    def data_of(task_id: int) -> bytes:
        if large_every and task_id % large_every == 0:
            return large
        return b"%d" % task_id

    def work() -> None:
        while True:
            kind, task_id, _, payload = line.worker.receive()
            if kind == EXIT:
                return
            seen.append(task_id)
            if payload is None or bytes(payload) != data_of(task_id):
                wrong.append(task_id)

    worker = threading.Thread(target=work)
    worker.start()
    chance = random.Random(7)
    waiting = [(task_id, make_payload(data_of(task_id))) for task_id in range(total)]
    waiting.reverse()
    recalled = 0
    while waiting:
        task_id, payload = waiting.pop()
        sent = line.parent.send(TASK, task_id, payload, b"")
        if not sent:
            waiting.append((task_id, payload))
        if not sent or chance.random() < 0.3:
            back = line.parent.recall()
            recalled += len(back)
            waiting += [(again, payload) for _, again, payload in reversed(back)]
    while not line.parent.send(EXIT, 0, None, b""):
        pass  # a busy wait: the worker makes room
    worker.join()
    assert sorted(seen) == list(range(total))
    assert not wrong
    assert recalled, "nothing was recalled: this run has tested nothing"


def test_a_large_payload_survives_recall_and_goes_to_another_worker(line: Line) -> None:
    data = os.urandom(LARGE)
    before = descriptors()
    assert line.send(1, data, b"for the first")
    assert descriptors() == before, "while it is on its way, nobody here holds a descriptor"
    ((kind, task_id, payload),) = line.parent.recall()
    assert (kind, task_id, payload.size) == (TASK_IN_FD, 1, LARGE)
    other = Line()
    assert other.parent.send(TASK, 1, payload, b"for the second")
    assert other.read() == (TASK_IN_FD, 1, b"for the second", data)
    other.close()
    assert descriptors() == before


def test_descriptors_of_unread_large_payloads_are_not_left_open(line: Line) -> None:
    before = descriptors()
    for task_id in range(5):
        assert line.send(task_id, b"x" * LARGE)
    refused = make_payload(b"x" * LARGE)
    del refused
    back = line.parent.recall()
    assert len(back) == 5
    del back
    for task_id in range(5):
        assert line.send(task_id, b"x" * LARGE)
    assert descriptors() == before
    # The fixture closes the line with these unread.


def test_a_refused_large_payload_can_be_sent_later(line: Line) -> None:
    count = line.send_until_full(data=b"x" * (INLINE_LIMIT - 1))
    payload = make_payload(b"y" * LARGE)
    while line.parent.send(TASK, count, payload, b"p" * 20_000):  # a large head fills it for sure
        payload = make_payload(b"y" * LARGE)
        count += 1
    for _ in range(count):
        line.read()
    assert line.parent.send(TASK, count, payload, b"")
    assert line.read() == (TASK_IN_FD, count, b"", b"y" * LARGE)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process has none left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    try:
        with pytest.raises(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def test_a_worker_out_of_descriptors_says_so_about_that_one_task(line: Line) -> None:
    line.send(1, b"x" * LARGE)
    line.send(2, b"small")
    with no_descriptors():
        kind, task_id, _, payload = line.worker.receive()
        second = line.read()
    assert (kind, task_id, payload) == (TASK_IN_FD, 1, None)
    assert second == (TASK, 2, b"", b"small")


def test_a_large_task_recalled_without_descriptors_is_not_sent_as_an_empty_one(line: Line) -> None:
    line.send(1, b"x" * LARGE)
    line.send(2, b"small")
    with no_descriptors():
        (kind, _, lost), (_, _, small) = line.parent.recall()
    with pytest.raises(OSError, match="no descriptor"):
        line.parent.send(TASK, 1, lost, b"")
    assert kind == TASK_IN_FD
    assert line.parent.send(TASK, 2, small, b"")
    assert line.read() == (TASK, 2, b"", b"small")


def test_the_worker_notices_the_end_of_its_parent(line: Line) -> None:
    line.send(1)
    line.parent.close()
    assert line.read()[1] == 1
    with pytest.raises(EOFError):
        line.worker.receive()


def test_results_arrive_and_outlive_the_worker(line: Line) -> None:
    assert line.parent.receive() is None
    line.worker.send(protocol.frame_head(2, 1, 3), b"abc")
    line.worker.send(protocol.frame_head(3, 2, 0))
    line.worker.close()
    data = line.parent.receive()
    assert data
    assert [plain(frame) for frame in FrameReader().feed(data)] == [
        (2, 1, 0, b"abc"),
        (3, 2, 0, b""),
    ]
    assert line.parent.receive() == b""
    assert line.parent.receive() == b"", "and so for ever"


def test_the_death_of_a_worker_with_unread_settings_is_an_end_not_an_error(line: Line) -> None:
    line.parent.send_settings(b"never read")
    line.worker.send(protocol.frame_head(2, 1, 0))
    line.worker.close()
    got = []
    reader = FrameReader()
    while data := line.parent.receive():
        got += reader.feed(data)
    assert data == b""


@pytest.mark.parametrize("size", [0, 1, INLINE_LIMIT + 1, 20_000_000])
def test_results_of_any_size(line: Line, size: int) -> None:
    payload = os.urandom(size)

    def work() -> None:
        line.worker.send(protocol.frame_head(2, 9, size), payload)

    worker = threading.Thread(target=work)
    worker.start()
    watch = socket.socket(fileno=os.dup(line.parent.fileno()))
    reader = FrameReader()
    got: list[Any] = []
    while not got:
        watch.recv(1, socket.MSG_PEEK)  # waits until there is something
        data = line.parent.receive()
        assert data
        got += reader.feed(data)
    worker.join()
    watch.close()
    assert plain(got[0]) == (2, 9, 0, payload)


@pytest.mark.parametrize("size", [1, INLINE_LIMIT, INLINE_LIMIT + 1, 5_000_000])
def test_settings_of_any_size(line: Line, size: int) -> None:
    blob = os.urandom(size)
    line.parent.send_settings(blob)  # before the worker is there to read
    assert line.worker.receive_settings() == blob


def test_a_descriptor_that_is_asked_for(line: Line) -> None:
    read, write = os.pipe()
    line.parent.send_descriptor(write)
    got = line.worker.receive_descriptor()
    assert got not in (read, write)
    os.write(got, b"!")
    assert os.read(read, 1) == b"!"
    assert not os.get_inheritable(got)
    for fd in (read, write, got):
        os.close(fd)


def test_closing_again_is_harmless(line: Line) -> None:
    for _ in range(3):
        line.parent.close()


def test_a_channel_keeps_away_from_the_standard_descriptors() -> None:
    code = (
        "import os\n"
        "from loky.wire.channel import open_channel, make_payload\n"
        "out = os.dup(1)\n"
        "os.dup2(out, 50); os.close(out)\n"
        "for fd in (0, 1, 2): os.close(fd)\n"
        "channel = open_channel()\n"
        "payload = make_payload(b'x' * 100_000)\n"
        "open_now = sorted(map(int, os.listdir('/proc/self/fd')))\n"
        "os.write(50, repr([channel.fileno(), *channel.worker_fds(), payload.fd]).encode())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    used = eval(done.stdout)
    assert len(set(used)) == 4
    assert min(used) > 2
