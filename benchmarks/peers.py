"""One adapter for each pool that is measured, all behind the interface of `Peer`.

Guarantees: importing this module imports no pool; `Peer.load` does, and nothing else. `submit`,
`wait` and `map` add one Python call to what the peer does itself, the same for all.
Assumes: one adapter serves one process and one pool; figures.py drives it.
Does not belong here: what is measured and how (figures.py), and any judgement on a peer. What a
peer is unable to do by its own documentation is declared in `cannot`; all else is tried.

This module runs inside measured interpreters, so it imports no `typing` and no `dataclasses`:
they would be loaded before the peer that needs them and make its import look cheaper.
"""

from __future__ import annotations

import os
import sys

import workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NO_LAMBDAS = "needs an importable function"


class NotInstalled(Exception):
    """The peer is not there, and why."""


class Peer:
    """What figures.py needs of a pool."""

    key = ""
    title = ""
    # The cheapest statement that names the package, and the one that gets hold of the pool.
    statements = ("", "")
    # Figure name -> why this peer has none.
    cannot: dict[str, str] = {}
    workers = 2

    def version(self) -> str:
        """The version that would be measured; raises `NotInstalled`."""
        raise NotImplementedError

    def load(self) -> None:
        """Import what `open` needs."""
        raise NotImplementedError

    def open(self) -> None:
        """Make the pool, without waiting for it."""
        raise NotImplementedError

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Give the pool one call; returns the peer's own handle."""
        raise NotImplementedError

    def wait(self, handle: Any, limit: float | None = None) -> Any:
        """The result behind a handle, or any exception; the peer's own time-out after `limit`."""
        return handle.result(limit)

    def map(self, function: Callable[[Any], Any], items: range, chunk: int) -> list[Any]:
        """The results of all items."""
        raise NotImplementedError

    def good_chunk(self, items: int) -> int:
        """A chunk size that suits this peer: four chunks a worker, as `Pool.map` chooses."""
        return max(1, items // (4 * self.workers))

    def replace(self) -> None:
        """After a failure: get a pool again, the way a user of this peer would."""
        raise NotImplementedError

    def close(self) -> None:
        """Shut the pool down and wait for it."""
        raise NotImplementedError


def _installed_version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        raise NotInstalled(f"{distribution} is not installed") from None


class _ExecutorPeer(Peer):
    """What all pools with the interface of `concurrent.futures` have in common."""

    pool: Any

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(function, *args)

    def map(self, function: Callable[[Any], Any], items: range, chunk: int) -> list[Any]:
        return list(self.pool.map(function, items, chunksize=chunk))

    def close(self) -> None:
        self.pool.shutdown(wait=True)


class _LokyPeer(_ExecutorPeer):
    """Ours, and both shapes of upstream's: the executor is the reusable one, their front door."""

    module = "loky"

    def load(self) -> None:
        from importlib import import_module

        self._get = import_module(self.module).get_reusable_executor

    def open(self) -> None:
        self.pool = self._get(max_workers=self.workers)

    def replace(self) -> None:
        self.open()


def _loky_found() -> tuple[bool, str]:
    """Whether the `loky` that would be imported is ours, and its version."""
    from importlib.util import find_spec

    try:
        import loky
    except ModuleNotFoundError as error:
        # Only "no loky at all" is an absence; a loky that fails to import is a failure to show.
        if error.name != "loky":
            raise
        raise NotInstalled("loky is not importable") from None
    version = getattr(loky, "__version__", "unknown version")
    return find_spec("loky.pool") is not None, version


class Ours(_LokyPeer):
    key = "ours"
    title = "loky (ours)"
    statements = ("import loky", "from loky import get_reusable_executor")

    def version(self) -> str:
        ours, version = _loky_found()
        if not ours:
            raise NotInstalled(f"the loky that is importable is upstream's {version}")
        return version


class Upstream(_LokyPeer):
    """Upstream's own distribution, from a directory that run.py puts first on the path."""

    key = "upstream"
    title = "loky (upstream)"
    statements = ("import loky", "from loky import get_reusable_executor")

    def version(self) -> str:
        try:
            ours, version = _loky_found()
        except NotInstalled:
            ours = True
        if ours:
            raise NotInstalled("not given, see --upstream")
        return version


class JoblibLoky(_LokyPeer):
    key = "joblib"
    title = "joblib.externals.loky"
    module = "joblib.externals.loky"
    statements = (
        "import joblib.externals.loky",
        "from joblib.externals.loky import get_reusable_executor",
    )

    def version(self) -> str:
        joblib = _installed_version("joblib")
        from joblib.externals import loky

        return f"{loky.__version__} in joblib {joblib}"


class _FuturesPeer(_ExecutorPeer):
    """`concurrent.futures` with one start method."""

    method = ""
    statements = (
        "import concurrent.futures",
        "from concurrent.futures import ProcessPoolExecutor",
    )
    cannot = {"submit-lambda": NO_LAMBDAS}

    def version(self) -> str:
        return "Python " + sys.version.split()[0]

    def load(self) -> None:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        self._executor = ProcessPoolExecutor
        self._get_context = get_context

    def open(self) -> None:
        self.pool = self._executor(self.workers, mp_context=self._get_context(self.method))

    def replace(self) -> None:
        self.pool.shutdown(wait=False)
        self.open()


class FuturesSpawn(_FuturesPeer):
    key = "futures-spawn"
    title = "concurrent.futures spawn"
    method = "spawn"


class FuturesForkserver(_FuturesPeer):
    key = "futures-forkserver"
    title = "concurrent.futures forkserver"
    method = "forkserver"


class MultiprocessingPool(Peer):
    key = "mp-pool"
    title = "multiprocessing.Pool spawn"
    statements = ("import multiprocessing", "from multiprocessing.pool import Pool")
    cannot = {"submit-lambda": NO_LAMBDAS}
    pool: Any

    def version(self) -> str:
        return "Python " + sys.version.split()[0]

    def load(self) -> None:
        from multiprocessing import get_context, pool

        self._context = get_context("spawn")
        assert pool  # the context would import it inside `open`

    def open(self) -> None:
        self.pool = self._context.Pool(self.workers)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(function, args)

    def wait(self, handle: Any, limit: float | None = None) -> Any:
        return handle.get(limit)

    def map(self, function: Callable[[Any], Any], items: range, chunk: int) -> list[Any]:
        results: list[Any] = self.pool.map(function, items, chunk)
        return results

    def replace(self) -> None:
        self.pool.terminate()
        self.open()

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Pebble(Peer):
    key = "pebble"
    title = "pebble spawn"
    statements = ("import pebble", "from pebble import ProcessPool")
    cannot = {"submit-lambda": NO_LAMBDAS}
    pool: Any

    def version(self) -> str:
        return _installed_version("pebble")

    def load(self) -> None:
        from multiprocessing import get_context

        from pebble import ProcessPool

        self._class = ProcessPool
        self._context = get_context("spawn")

    def open(self) -> None:
        self.pool = self._class(max_workers=self.workers, context=self._context)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(function, None, *args)

    def map(self, function: Callable[[Any], Any], items: range, chunk: int) -> list[Any]:
        return list(self.pool.map(function, items, chunksize=chunk).result())

    def good_chunk(self, items: int) -> int:
        # Tried from 500 to 50,000: the smaller the faster.
        return 500

    def replace(self) -> None:
        if not self.pool.active:
            self.pool.stop()
            self.open()

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Mpire(Peer):
    key = "mpire"
    title = "mpire spawn"
    statements = ("import mpire", "from mpire import WorkerPool")
    cannot = {"submit-lambda": "needs dill with spawn"}
    pool: Any

    def version(self) -> str:
        return _installed_version("mpire")

    def load(self) -> None:
        from mpire import WorkerPool  # type: ignore[attr-defined]  # re-exported silently

        self._class = WorkerPool

    def open(self) -> None:
        self.pool = self._class(n_jobs=self.workers, start_method="spawn", keep_alive=True)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(function, args)

    def wait(self, handle: Any, limit: float | None = None) -> Any:
        return handle.get(limit)

    def map(self, function: Callable[[Any], Any], items: range, chunk: int) -> list[Any]:
        results: list[Any] = self.pool.map(function, items, chunk_size=chunk)
        return results

    def replace(self) -> None:
        self.pool.terminate()
        self.open()

    def close(self) -> None:
        self.pool.stop_and_join()
        self.pool.terminate()


class Floor(Peer):
    """Two Python processes, a socket pair and pickle: nothing a pool does can cost less.

    It has one worker, no thread, and keeps only so many calls on the way that they fit into the
    socket buffers: with more, both sides could block in a write and wait for each other.
    """

    key = "floor"
    title = "floor: bare socket + pickle"
    statements = ("pass", "pass")
    cannot = {
        "import": "there is nothing to import",
        "import-pool": "there is nothing to import",
        "submit-lambda": NO_LAMBDAS,
        "cold-all": "has one worker",
        "kill-full": "has one worker",
    }
    workers = 1
    small_messages = 64
    large_messages = 2

    def version(self) -> str:
        return "Python " + sys.version.split()[0]

    def load(self) -> None:
        import pickle
        import socket
        from collections import deque

        self._pickle, self._socket, self._deque = pickle, socket, deque

    def open(self) -> None:
        mine, theirs = self._socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            folder = os.path.dirname(os.path.abspath(workload.__file__))
            code = (
                f"import sys; sys.path.insert(0, {folder!r}); "
                f"import workload; workload.serve({theirs.fileno()})"
            )
            self._pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
        self._channel = mine
        # Not `makefile`: its reads go through Python code, which a floor should not pay for.
        self._stream = os.fdopen(os.dup(mine.fileno()), "rb")
        self._waiting: Any = self._deque()

    def _receive(self) -> None:
        header = self._stream.read(4)
        if len(header) < 4:
            raise EOFError("the worker is gone")
        result = self._pickle.loads(self._stream.read(int.from_bytes(header, "little")))
        self._waiting.popleft().append(result)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._send(function, args, self.small_messages)

    def _send(self, function: Callable[..., Any], args: tuple[Any, ...], window: int) -> Any:
        if len(self._waiting) >= window:
            self._receive()
        body = self._pickle.dumps((function, args), self._pickle.HIGHEST_PROTOCOL)
        self._channel.sendall(len(body).to_bytes(4, "little") + body)
        handle: list[Any] = []
        self._waiting.append(handle)
        return handle

    def wait(self, handle: Any, limit: float | None = None) -> Any:
        # No time limit here: this worker either answers or is dead, and the run has its own.
        while not handle:
            self._receive()
        return handle[0]

    def map(self, function: Callable[[Any], Any], items: range, chunk: int) -> list[Any]:
        if chunk == 1:
            handles = [self.submit(function, item) for item in items]
            return [self.wait(handle) for handle in handles]
        chunks = (list(items[start : start + chunk]) for start in range(0, len(items), chunk))
        handles = [
            self._send(workload.call_each, (function, part), self.large_messages) for part in chunks
        ]
        return [result for handle in handles for result in self.wait(handle)]

    def good_chunk(self, items: int) -> int:
        return 1000

    def replace(self) -> None:
        self.close()
        self.open()

    def close(self) -> None:
        self._stream.close()
        self._channel.close()
        os.waitpid(self._pid, 0)


PEERS: tuple[type[Peer], ...] = (
    Ours,
    Upstream,
    JoblibLoky,
    FuturesSpawn,
    FuturesForkserver,
    MultiprocessingPool,
    Pebble,
    Mpire,
    Floor,
)


def peer(key: str) -> Peer:
    """A fresh adapter for a key of the command line."""
    for candidate in PEERS:
        if candidate.key == key:
            return candidate()
    raise KeyError(key)
