"""A file that is whole and as it was written, or refused: written aside, sealed, then renamed.

The first 512 bytes (an HDF5 user block, which HDF5 itself never reads) say what the file is and carry the
SHA-256 of all that follows. While a file is being written the block says so; a reader checks the block before
HDF5 sees a byte, so damage is an explanation and never a crash or a silently different number.
"""

import hashlib
import os
import secrets
from pathlib import Path

from jepaplan.types import InputError

BLOCK = 512  # bytes; the smallest user block that HDF5 allows
KIND = b"jepaplan episodes 1\n"
UNFINISHED = b"unfinished: recording was stopped before its last episode\n"


def aside(path: Path) -> Path:
    """A new name in the same folder, for a file that is not finished."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def mark_unfinished(path: Path) -> None:
    """Write the block of a file that must not be read yet."""
    with path.open("r+b") as file:
        file.write((KIND + UNFINISHED).ljust(BLOCK, b"\0"))


def seal(path: Path, final: Path) -> None:
    """Write the hash of the finished file into its block, push it to the disk and give it its name."""
    with path.open("r+b") as file:
        file.write(_block(_digest(path)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(path, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_seal(path: Path) -> None:
    """Refuse a file that is missing, foreign, unfinished or not the bytes that were written."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; `jepaplan collect` records one")
    try:
        with path.open("rb") as file:
            block = file.read(BLOCK)
    except OSError as reason:
        raise InputError(f"{path}: cannot be read ({reason})") from reason
    if not block:
        raise InputError(f"{path}: the file is empty; record or copy it again")
    if not block.startswith(KIND):
        kind = "HDF5, but not written by" if block.startswith(b"\x89HDF\r\n") else "not an HDF5 file of"
        raise InputError(
            f"{path}: {kind} jepaplan; write its episodes with `EpisodeWriter(path, manifest)` first. "
            f"(If jepaplan did write it, its first bytes are damaged: {block[:20]!r} should be {KIND!r}.)"
        )
    if block.startswith(KIND + UNFINISHED):
        raise InputError(f"{path}: the recording was stopped before it was finished; record it again")
    if block != _block(_digest(path)):
        raise InputError(
            f"{path}: these are not the bytes that were written: the file is cut off, damaged or edited "
            f"(its SHA-256 does not match); copy or record it again"
        )


def _block(digest: str) -> bytes:
    return (KIND + b"sha256 of all bytes after 512: " + digest.encode() + b"\n").ljust(BLOCK, b"\0")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(BLOCK)
        return hashlib.file_digest(file, "sha256").hexdigest()
