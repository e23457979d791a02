"""The resource tracker's process: counts references and removes what nobody has any more.

Every process that may use a resource holds the write end of this process' pipe, and says who has
taken and given back what. When the last of them has ended, however it ended, the pipe is at its
end: what is still registered then was leaked, and is removed.

Rule 1: what is removed, and when, is decided by `Ledger`; it does no I/O but for the removing and
for its complaints.

Rule 2: nothing that a client sends, and nothing that goes wrong with one resource, may keep this
process from removing the others.

It imports neither multiprocessing nor anything else of loky's, so it stays small: there may be one
for each program on the machine.

Does not belong here: the clients' side, see `resource_tracker`.
"""

from __future__ import annotations

import sys
import warnings

from ._platform import platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# The line that only asks whether somebody is reading.
PROBE = b"PROBE:0:noop\n"

# The kinds of leak that ended this process are told by its exit code, as multiprocessing's does.
LEAKED, NOT_REMOVED, NOT_UNDERSTOOD = 1, 2, 3


# What is tracked ---------------------------------------------------------------------------------


def cleanup_noop(name: str) -> None:
    """Refuse: the kind "noop" is for probes, and there is nothing to remove."""
    raise RuntimeError("noop should never be registered or cleaned up")


def _remove_folder(name: str) -> None:
    import shutil

    shutil.rmtree(name)


def _remove_semaphore(name: str) -> None:
    from _multiprocessing import sem_unlink

    sem_unlink(name)


# How a resource is removed, by its kind. Callers may replace functions, in this process.
_CLEANUP_FUNCS: dict[str, Callable[[str], object]] = {
    "noop": cleanup_noop,
    "dummy": lambda name: None,  # for tests; leaks of it are not mentioned
    "folder": _remove_folder,
    "file": platform.remove_file,
}
if platform.SEMAPHORES_HAVE_NAMES:
    _CLEANUP_FUNCS["semlock"] = _remove_semaphore


# Lines on the pipe -------------------------------------------------------------------------------


def encode_message(command: str, name: str, rtype: str) -> bytes:
    r"""Write a message as one line.

    Either of the two forms that multiprocessing's tracker has: ``command:name:rtype``, or JSON for
    a name that does not fit in there because of a newline or of characters outside ASCII.
    """
    if name.isascii() and "\n" not in name and "\r" not in name:
        return f"{command}:{name}:{rtype}\n".encode()
    import base64
    import json

    coded = base64.urlsafe_b64encode(name.encode("utf-8", "surrogateescape")).decode()
    return (json.dumps({"cmd": command, "rtype": rtype, "base64_name": coded}) + "\n").encode()


def decode_message(line: bytes) -> tuple[str, str, str]:
    """Read a line back: command, kind of resource, name."""
    if line.startswith(b"{"):
        import base64
        import json

        fields = json.loads(line)
        name = base64.urlsafe_b64decode(fields.get("base64_name", ""))
        return fields["cmd"], fields["rtype"], name.decode("utf-8", "surrogateescape")
    command, _, rest = line.rstrip(b"\n").decode("ascii").partition(":")
    name_, colon, rtype = rest.rpartition(":")
    if not colon:
        raise ValueError("malformed message")
    return command, rtype, name_


class Ledger:
    """Who has what: the number of references to each registered resource.

    Attributes
    ----------
    exit_code : int
        The worst that has happened so far: 0, or one of the constants of this module.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.exit_code = 0
        self._verbose = verbose
        self._counts: dict[str, dict[str, int]] = {}

    def handle(self, line: bytes) -> None:
        """Do what one line asks for; complain if that cannot be done."""
        try:
            self._handle(*decode_message(line))
        except Exception as error:
            self._worsen(NOT_UNDERSTOOD)
            _print(f"resource_tracker: {type(error).__name__}: {error}, in message {line!r}")

    def _handle(self, command: str, rtype: str, name: str) -> None:
        if rtype not in _CLEANUP_FUNCS:
            raise ValueError(
                f"Cannot register {name} for automatic cleanup: unknown resource type ({rtype}). "
                f"Resource type should be one of the following: {list(_CLEANUP_FUNCS)}"
            )
        counts = self._counts.setdefault(rtype, {})
        if command in ("UNREGISTER", "MAYBE_UNLINK") and name not in counts:
            # By a mistake in counting, or registered with a tracker that has died since.
            raise LookupError(f"{rtype} {name} is not registered")
        if command == "REGISTER":
            counts[name] = counts.get(name, 0) + 1
            self._say(f"incremented refcount of {rtype} {name} (current {counts[name]})")
        elif command == "UNREGISTER":
            del counts[name]
            self._say(f"unregister {rtype} {name}")
        elif command == "MAYBE_UNLINK":
            counts[name] -= 1
            self._say(f"decremented refcount of {rtype} {name} (current {counts[name]})")
            if counts[name] <= 0:
                del counts[name]
                self._remove(rtype, name)
        elif command != "PROBE":
            raise RuntimeError(f"unrecognized command {command!r}")

    def close(self) -> None:
        """Remove everything that is left, and say that it was left."""
        # Folders last: what else is registered may be inside one.
        for rtype in sorted(self._counts, key=lambda rtype: rtype == "folder"):
            names = self._counts[rtype]
            if not names:
                continue
            self._worsen(LEAKED)
            if rtype != "dummy":
                _warn(
                    f"resource_tracker: There appear to be {len(names)} leaked {rtype} objects to "
                    f"clean up at shutdown: {set(names)}"
                )
            # Inner folders before outer ones, whose names they begin with.
            for name in sorted(names, reverse=True):
                self._remove(rtype, name)
        self._counts.clear()
        self._say("resource tracker shut down")

    def _remove(self, rtype: str, name: str) -> None:
        try:
            _CLEANUP_FUNCS[rtype](name)
        except Exception as error:
            self._worsen(NOT_REMOVED)
            _warn(f"resource_tracker: {name}: {error!r}")
        else:
            self._say(f"unlink {rtype} {name}")

    def _worsen(self, exit_code: int) -> None:
        self.exit_code = max(self.exit_code, exit_code)

    def _say(self, text: str) -> None:
        if self._verbose:
            _print(f"[ResourceTracker] {text}")


# Complaints --------------------------------------------------------------------------------------


def _warn(text: str) -> None:
    """Warn, so that callers can turn it off with PYTHONWARNINGS, but never raise."""
    try:
        warnings.warn(text, stacklevel=2)
    except Exception:  # warnings are errors here, as they are in the parent
        _print(text)


def _print(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except Exception:  # there may be no standard error, or nobody who reads it
        pass


def main(fd: int, verbose: int = 0) -> None:
    """Be the resource tracker, until nobody holds the other end of the pipe.

    Parameters
    ----------
    fd : int
        The read end of the pipe, as the starting process has passed it on.
    verbose : int, default 0
        Whether to write what happens to standard error.
    """
    platform.ignore_signals()
    # Whoever reads what the parent writes must not wait for this process to end as well.
    for stream in (sys.stdin, sys.stdout):
        try:
            stream.close()
        except Exception:
            pass
    ledger = Ledger(bool(verbose))
    try:
        with platform.open_inherited(fd) as lines:
            for line in lines:
                ledger.handle(line)
    finally:
        ledger.close()
    sys.exit(ledger.exit_code)
