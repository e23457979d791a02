"""Tests of the processes of "loky" and "loky_init_main", and of how they are started.

Guarantee: every wait is for an event that the other process causes, and ends with that process.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.heap as heap
import os
import pickle
import shutil
import signal
import socket
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import backend_helpers as helpers
import pytest
from backend_helpers import check_code, run_script

from loky.backend import resource_tracker
from loky.backend.context import ctx_loky, get_context
from loky.backend.fork_exec import fork_exec
from loky.backend.process import AuthenticationKey, LokyInitMainProcess, LokyProcess

LONG = 30.0  # seconds; only a bug needs them

pytestmark = pytest.mark.usefixtures("no_leftovers")


def start(target: Any, *args: Any, **options: Any) -> Any:
    process = ctx_loky.Process(target=target, args=args, **options)
    process.start()
    return process


def finish(process: Any, exitcode: int = 0) -> None:
    process.join(LONG)
    assert process.exitcode == exitcode
    process.close()


@pytest.fixture
def queue() -> Any:
    queue = ctx_loky.SimpleQueue()
    yield queue
    queue.close()


# What a process is and knows ---------------------------------------------------------------------


def test_process_knows_who_it_is(queue: Any) -> None:
    process = start(helpers.send_identity, queue, name="worker of mine")
    assert process in multiprocessing.active_children()
    found = queue.get()
    assert found == {
        "pid": process.pid,
        "name": "worker of mine",
        "authkey": bytes(multiprocessing.current_process().authkey),
        "parent": os.getpid(),
        "parent is alive": True,
        "start method": "loky",
        "argv": sys.argv,
        "main": found["main"],
    }
    assert found["main"].endswith("popen_loky_posix.py"), "its own __main__, not ours"
    finish(process)


def test_what_it_runs_need_not_be_importable(queue: Any) -> None:
    local = {"answer": 42}
    process = start(lambda q: q.put(local), queue)
    assert queue.get() == local
    finish(process)


def test_arguments(queue: Any) -> None:
    process = ctx_loky.Process(None, helpers.send, "name", (queue, 1), {}, True)
    assert (process.name, process.daemon, process.exitcode) == ("name", True, None)
    process.start()
    assert queue.get() == 1
    finish(process)


def test_options_of_the_classes() -> None:
    plain, main = LokyProcess(), LokyInitMainProcess(env={"A": 1})
    assert (plain.init_main_module, plain.env, plain._start_method) == (False, {}, "loky")
    assert (main.init_main_module, main.env) == (True, {"A": 1})
    assert main._start_method == "loky_init_main"
    assert isinstance(plain.authkey, AuthenticationKey)
    with pytest.raises(TypeError, match="Pickling an Auth"):
        pickle.dumps(plain.authkey)


def test_environment(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_TEST_OURS", "inherited")
    process = start(helpers.send_environment, queue, "LOKY_TEST_OURS")
    assert queue.get() == "inherited"
    finish(process)
    environment = {"LOKY_TEST_OURS": "changed", "PYTHONHASHSEED": 123}
    process = start(helpers.send_environment, queue, "LOKY_TEST_OURS", env=environment)
    assert queue.get() == "changed"
    finish(process)
    assert os.environ["LOKY_TEST_OURS"] == "inherited"


def test_environment_is_there_from_the_start(queue: Any) -> None:
    # The interpreter reads this one before it runs anything.
    process = start(lambda q: q.put(sys.flags.hash_randomization), queue, env={"PYTHONHASHSEED": 0})
    assert queue.get() == 0
    finish(process)


def test_interpreter_flags_are_passed_on() -> None:
    out = check_code(
        """
        import sys
        from loky.backend import get_context
        def report():
            print(sys.flags.optimize, sys.flags.no_user_site, "faulthandler" in sys._xoptions)
        process = get_context().Process(target=report)
        process.start()
        process.join()
        """,
        *("-OO", "-s", "-X", "faulthandler"),
    )
    assert out == "2 1 True\n"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="looks into /proc")
def test_only_chosen_descriptors_are_open(queue: Any) -> None:
    with open(os.devnull) as file:
        os.set_inheritable(file.fileno(), True)  # not even these
        process = start(helpers.send_descriptors, queue)
        found = queue.get()
        finish(process)
    beyond = sorted(kind.partition(":")[0] for number, kind in found.items() if number > 2)
    # The parent, two trackers, and the two ends of the queue.
    assert [kind for kind in beyond if kind == "pipe"] == ["pipe"] * 5
    assert not [kind for kind in beyond if kind not in ("pipe", "/dev/null", "/dev/urandom")]


def test_process_list_shows_the_name() -> None:
    from loky.backend.popen_loky_posix import _command_line

    command = _command_line("a name", 7)
    assert command[0] == sys.executable
    assert " ".join(command).endswith(
        "-m loky.backend.popen_loky_posix --process-name a name --pipe 7"
    )


def test_frozen_application(monkeypatch: pytest.MonkeyPatch) -> None:
    from loky.backend.popen_loky_posix import _command_line
    from loky.backend.spawn import get_preparation_data

    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert _command_line("a name", 7) == [
        sys.executable,
        "--multiprocessing-fork",  # what multiprocessing.freeze_support looks for
        "pipe_handle=7",
    ]
    assert "init_main_from_path" not in get_preparation_data("a name")


# How it ends -------------------------------------------------------------------------------------


def test_sentinel_tells_the_end(queue: Any) -> None:
    process = ctx_loky.Process(target=queue.get)
    with pytest.raises(ValueError, match="not started"):
        _ = process.sentinel
    process.start()
    assert wait([process.sentinel], 0) == []
    queue.put("go")
    assert wait([process.sentinel], LONG) == [process.sentinel]
    finish(process)


@pytest.mark.parametrize(
    ("target", "exitcode"),
    [
        (lambda: None, 0),
        (lambda: sys.exit(3), 3),
        (lambda: helpers.leave(4), 4),
        (helpers.kill_self, -signal.SIGKILL),
    ],
)
def test_exitcode(target: Any, exitcode: int) -> None:
    finish(start(target), exitcode)


@pytest.mark.parametrize("method", ["terminate", "kill"])
def test_ended_from_outside(method: str, queue: Any) -> None:
    started = ctx_loky.SimpleQueue()
    process = start(helpers.send_back, queue, started)
    queue.put(1)
    assert started.get() == 1
    endless = start(queue.get)
    getattr(endless, method)()
    finish(endless, -getattr(signal, {"terminate": "SIGTERM", "kill": "SIGKILL"}[method]))
    finish(process)
    started.close()


def test_join_with_a_timeout() -> None:
    event = ctx_loky.Event()
    process = start(helpers.wait_for, event)
    process.join(0)
    assert process.is_alive()
    process.join(-1)
    assert process.is_alive()
    event.set()
    finish(process)


def test_child_that_dies_of_what_it_is_told() -> None:
    finish(start(id, helpers.Fatal()), 7)


@pytest.mark.skipif(shutil.which("false") is None, reason="there is no program to fail with")
def test_child_that_dies_before_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loky.backend.spawn.get_executable", lambda: shutil.which("false"))
    # More than a pipe holds.
    finish(start(id, bytes(1 << 20)), 1)


def test_child_that_cannot_be_told_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loky.backend.spawn.get_executable", lambda: "/no/such/python")
    with pytest.raises(FileNotFoundError, match="/no/such/python"):
        start(id, 1)


def test_what_cannot_be_pickled_starts_nothing() -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        start(id, (item for item in ()))


def test_child_learns_of_the_parents_death() -> None:
    # The output is at its end when the child has ended too.
    out = check_code("""
        import multiprocessing, os, sys
        from loky.backend import get_context
        def outlive(ready):
            parent = multiprocessing.parent_process()
            ready.release()
            parent.join()
            print("parent alive:", parent.is_alive(), flush=True)
        ready = get_context().Semaphore(0)
        get_context().Process(target=outlive, args=(ready,)).start()
        ready.acquire()
        sys.stdout.flush()
        # Nothing is told to the child; and no semaphores are left for the tracker to complain of.
        ready._cleanup(ready._semlock.name)
        os._exit(0)
    """)
    assert out == "parent alive: False\n"


# The parent's __main__ ---------------------------------------------------------------------------

UNGUARDED = """
    from loky.backend.process import LokyProcess
    process = LokyProcess(target=id, args=(1,), init_main_module={init_main})
    process.start()
    process.join()
    print("exit code", process.exitcode)
"""


def test_script_needs_no_guard(tmp_path: Path) -> None:
    done = run_script(tmp_path / "script.py", UNGUARDED.format(init_main=False))
    assert (done.returncode, done.stdout, done.stderr) == (0, "exit code 0\n", "")


def test_script_needs_a_guard_when_it_is_imported(tmp_path: Path) -> None:
    done = run_script(tmp_path / "script.py", UNGUARDED.format(init_main=True))
    assert "RuntimeError:" in done.stdout, "on standard output, as upstream does"
    assert "LokyProcess-1 could not be started" in done.stdout
    assert done.stdout.endswith("exit code 1\n")


@pytest.mark.parametrize("method", ["loky", "loky_init_main"])
@pytest.mark.parametrize("as_module", [False, True])
def test_who_imports_main(method: str, as_module: bool, tmp_path: Path) -> None:
    code = f"""
        print("main is run as", __name__, flush=True)
        from loky.backend import get_context
        def work():
            print("work is in", work.__module__, flush=True)
        if __name__ == "__main__":
            process = get_context("{method}").Process(target=work)
            process.start()
            process.join()
    """
    if as_module:
        (tmp_path / "script.py").write_text(helpers.textwrap.dedent(code))
        out = check_code(
            "import runpy; runpy.run_module('script', run_name='__main__', alter_sys=True)",
            PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
        )
    else:
        done = run_script(tmp_path / "script.py", code)
        assert done.stderr == ""
        out = done.stdout
    again = ["main is run as __mp_main__"] if method == "loky_init_main" else []
    assert out.splitlines() == ["main is run as __main__", *again, "work is in __main__"]


def test_sys_path_is_passed_on(queue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def report(queue): queue.put(__name__)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    process = start(only_here.report, queue)
    assert queue.get() == "only_here"
    finish(process)


# What can be passed to it ------------------------------------------------------------------------


def test_connection() -> None:
    ours, theirs = ctx_loky.Pipe()
    with ours, theirs:
        process = start(helpers.echo_bytes, theirs)
        ours.send_bytes(b"there and back")
        assert ours.recv_bytes() == b"there and back"
        finish(process)


def test_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = start(helpers.echo_socket, theirs)
        ours.sendall(b"there and back")
        assert ours.recv(1024) == b"there and back"
        finish(process)


def test_socket_and_connection_to_a_running_process(queue: Any) -> None:
    sock, their_sock = socket.socketpair()
    connection, their_connection = ctx_loky.Pipe()
    with sock, their_sock, connection, their_connection:
        process = start(helpers.echo_from, queue)
        queue.put(their_sock)
        sock.sendall(b"there and back")
        assert sock.recv(1024) == b"there and back"
        finish(process)
        process = start(helpers.echo_from, queue)
        queue.put(their_connection)
        connection.send_bytes(b"there and back")
        assert connection.recv_bytes() == b"there and back"
        finish(process)
    from multiprocessing import resource_sharer

    resource_sharer.stop(LONG)


def test_shared_memory_of_multiprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The usual one keeps what it has for the next time.
    monkeypatch.setattr(heap.BufferWrapper, "_heap", heap.Heap())
    value, array = ctx_loky.Value("i", 41), ctx_loky.Array("d", [0, 0])
    barrier = ctx_loky.Barrier(2, timeout=LONG)
    process = start(helpers.add_one, value, array, barrier)
    barrier.wait()
    finish(process)
    assert (value.value, list(array)) == (42, [0, 2.5])


def test_trackers_are_shared(queue: Any) -> None:
    from multiprocessing import resource_tracker as theirs

    process = start(helpers.send_trackers, queue)
    for tracker in (resource_tracker, theirs):
        assert queue.get() == (helpers.identify(tracker.getfd()), None, False)
    finish(process)


def test_processes_start_processes(queue: Any) -> None:
    finish(start(helpers.relay, queue, 2))
    assert [queue.get() for _ in range(3)] == [2, 1, 0]


# Underneath --------------------------------------------------------------------------------------


def test_fork_exec() -> None:
    read_end, write_end = os.pipe()
    code = f"import os; os.write({write_end}, os.environ['A'].encode())"
    pid = fork_exec([sys.executable, "-c", code], [write_end], {"A": 1})
    os.close(write_end)
    with open(read_end, "rb") as file:
        assert file.read() == b"1"
    # The status is still there: nobody has taken it for us.
    assert os.waitpid(pid, 0)[1] == 0


def test_spawning_processes_context() -> None:
    assert get_context("spawn").Process is not LokyProcess
