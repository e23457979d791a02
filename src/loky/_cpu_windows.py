"""What Windows says about the CPUs of this process.

Guarantee: no process is started; two functions of kernel32 are called through ctypes.

Assumption: a machine with more than 64 CPUs has processor groups, and an affinity mask covers one
group. A process that spans groups reports an empty mask, which is read as "not bound"; `cpu` caps
the machine at 61 in any case.

Does not belong here: that cap, and combining limits (see `cpu`).

Everything takes the library as an argument, so that the parsing is tested on every system.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from typing import Any

_RELATION_PROCESSOR_CORE = 0
_RECORD_HEADER = 8  # two DWORDs: what the record is about, and how many bytes it has


def affinity(*, kernel32: Any = None) -> set[int] | None:
    """Return the CPUs this process is bound to, or None when it is not bound to fewer than all."""
    import ctypes

    kernel32 = kernel32 or _kernel32()
    get_process = kernel32.GetCurrentProcess
    get_process.restype = ctypes.c_void_p  # a handle: cut to 32 bits it would name nothing
    get_mask = kernel32.GetProcessAffinityMask
    get_mask.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    ours, all_cpus = ctypes.c_size_t(), ctypes.c_size_t()
    if not get_mask(get_process(), ctypes.byref(ours), ctypes.byref(all_cpus)):
        return None
    if not ours.value or ours.value == all_cpus.value:
        return None
    return {bit for bit in range(ours.value.bit_length()) if ours.value >> bit & 1}


def cgroup_quota(root: str = "") -> tuple[int, str] | None:
    """Return None: control groups are a thing of Linux."""
    return None


def physical_cores(cpus: AbstractSet[int] | None, root: str = "", *, kernel32: Any = None) -> int:
    """Return the number of physical cores of the machine, over all processor groups.

    Parameters
    ----------
    cpus : set of int or None
        Ignored: the whole machine is counted.
    root : str
        Ignored: no file is read.
    kernel32 : object with a ``GetLogicalProcessorInformationEx`` function, optional
        For tests; the system's own library when None.

    Raises
    ------
    OSError
        When the operating system does not answer, or not with whole records.
    """
    import ctypes

    inquire = (kernel32 or _kernel32()).GetLogicalProcessorInformationEx
    inquire.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    length = ctypes.c_uint32(0)
    # The first call is too small on purpose: it fails and says how much room the answer needs.
    inquire(_RELATION_PROCESSOR_CORE, None, ctypes.byref(length))
    answer = ctypes.create_string_buffer(length.value)
    if not length.value or not inquire(_RELATION_PROCESSOR_CORE, answer, ctypes.byref(length)):
        raise OSError("GetLogicalProcessorInformationEx failed")
    return _count_records(answer.raw[: length.value])


def _count_records(data: bytes) -> int:
    """Count the records of variable length; we asked for cores only, so each is one core."""
    count = offset = 0
    while offset < len(data):
        size = int.from_bytes(data[offset + 4 : offset + _RECORD_HEADER], "little")
        if size < _RECORD_HEADER or offset + size > len(data):
            raise OSError("GetLogicalProcessorInformationEx returned a broken record")
        count += 1
        offset += size
    return count


def _kernel32() -> Any:
    import ctypes

    # By name, so that type checking on another system does not stumble over it.
    return getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009
