"""What the workers are asked to do.

Guarantees: every function is importable by name (so every peer can send it), and importing this
module costs a worker next to nothing, or it would show up as the peer's cold start. The process
started for the floor lives here too: it is a worker, only without a pool.

Does not belong here: anything that runs in the process that owns the pool (see meeting.py).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def noop() -> None:
    """The smallest task there is: what remains is the cost of the pool."""


def echo(item: int) -> int:
    """The smallest task that `map` can feed."""
    return item


def call_each(function: Callable[[Any], Any], items: Any) -> list[Any]:
    """Several calls in one task: how a peer without chunks of its own sends them."""
    return [function(item) for item in items]


def arrive(arrived: str, go: str) -> int:
    """Announce this worker on one named pipe, then wait on another for permission to return.

    The announcement is shorter than PIPE_BUF, so those of several workers never mix.
    """
    me = os.getpid()
    descriptor = os.open(arrived, os.O_WRONLY)
    try:
        os.write(descriptor, b"%d\n" % me)
    finally:
        os.close(descriptor)
    descriptor = os.open(go, os.O_RDONLY)
    try:
        os.read(descriptor, 1)
    finally:
        os.close(descriptor)
    return me


def serve(descriptor: int) -> None:
    """The worker of the floor: read a pickled call, make it, write the pickled outcome."""
    import pickle

    with os.fdopen(descriptor, "rb") as stream:
        while len(header := stream.read(4)) == 4:
            function, args = pickle.loads(stream.read(int.from_bytes(header, "little")))
            reply = pickle.dumps(function(*args), pickle.HIGHEST_PROTOCOL)
            # A blocking stream socket takes all of it, so one call is enough.
            os.write(descriptor, len(reply).to_bytes(4, "little") + reply)
