"""include/linux/jhash.h (v5.10): Bob Jenkins' hash of a key

Not modelled: `jhash2` and `jhash_nwords`.
"""

from __future__ import annotations

from typing import Final

JHASH_INITVAL: Final = 0xDEADBEEF
_U32: Final = 0xFFFF_FFFF


def _rol32(word: int, shift: int) -> int:
    return (word << shift | word >> (32 - shift)) & _U32


def __jhash_mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = (a - c & _U32) ^ _rol32(c, 4)
    c = c + b & _U32
    b = (b - a & _U32) ^ _rol32(a, 6)
    a = a + c & _U32
    c = (c - b & _U32) ^ _rol32(b, 8)
    b = b + a & _U32
    a = (a - c & _U32) ^ _rol32(c, 16)
    c = c + b & _U32
    b = (b - a & _U32) ^ _rol32(a, 19)
    a = a + c & _U32
    c = (c - b & _U32) ^ _rol32(b, 4)
    b = b + a & _U32
    return a, b, c


def __jhash_final(a: int, b: int, c: int) -> int:
    c = (c ^ b) - _rol32(b, 14) & _U32
    a = (a ^ c) - _rol32(c, 11) & _U32
    b = (b ^ a) - _rol32(a, 25) & _U32
    c = (c ^ b) - _rol32(b, 16) & _U32
    a = (a ^ c) - _rol32(c, 4) & _U32
    b = (b ^ a) - _rol32(a, 14) & _U32
    return (c ^ b) - _rol32(b, 24) & _U32


def jhash(key: bytes, initval: int) -> int:
    """The 32-bit hash of `key`, which may have any length."""
    a = b = c = JHASH_INITVAL + len(key) + initval & _U32
    at = 0
    while len(key) - at > 12:
        a = a + int.from_bytes(key[at : at + 4], "little") & _U32
        b = b + int.from_bytes(key[at + 4 : at + 8], "little") & _U32
        c = c + int.from_bytes(key[at + 8 : at + 12], "little") & _U32
        a, b, c = __jhash_mix(a, b, c)
        at += 12
    if at == len(key):
        return c
    a = a + int.from_bytes(key[at : at + 4], "little") & _U32
    b = b + int.from_bytes(key[at + 4 : at + 8], "little") & _U32
    c = c + int.from_bytes(key[at + 8 : at + 12], "little") & _U32
    return __jhash_final(a, b, c)
