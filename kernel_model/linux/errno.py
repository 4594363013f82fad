"""include/uapi/asm-generic/errno.h and include/linux/errno.h, v5.10: error numbers.

Not modelled: numbers that no modelled function returns.
"""

from __future__ import annotations

from typing import Final

EPERM: Final = 1
ENOENT: Final = 2
ESRCH: Final = 3
EINTR: Final = 4
EIO: Final = 5
E2BIG: Final = 7
EBADF: Final = 9
EAGAIN: Final = 11
ENOMEM: Final = 12
EACCES: Final = 13
EFAULT: Final = 14
EBUSY: Final = 16
EEXIST: Final = 17
ENODEV: Final = 19
EINVAL: Final = 22
ENFILE: Final = 23
EMFILE: Final = 24
ENOSPC: Final = 28
ERANGE: Final = 34
ENOSYS: Final = 38
ENODATA: Final = 61
EOPNOTSUPP: Final = 95
ENOTSUPP: Final = 524  # kernel internal, yet user space gets to see it

_NAMES: Final[dict[int, str]] = {
    number: name for name, number in list(globals().items()) if name.startswith("E")
}


def errno_name(n: int) -> str:
    """``EINVAL`` for 22 and for -22; the number itself for one that is not modelled."""
    return _NAMES.get(abs(n), str(abs(n)))
