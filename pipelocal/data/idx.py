"""The idx format of MNIST and its kin: a header with the shape, then one byte a value."""

import math
import struct
from pathlib import Path

import numpy as np

from pipelocal.data.files import Bytes, corrupt_file, read_file

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, *, dimensions: int, name: str) -> Bytes:
    """The array in an idx file of unsigned bytes, plain or gzip.

    torchvision's own reader is not used: it reads no gzip, never names the file that is wrong, and
    prefers a processed cache to the files if it finds one.

    Args:
        path: the file; packed if it ends in ``.gz``.
        dimensions: how many the array must have.
        name: the data set, for messages.

    Returns:
        A writable uint8 array of the shape in the header.

    Raises:
        DataError: it is no such idx file, or is longer or shorter than its header says.
        OSError: it cannot be read.
    """
    content = read_file(path, name=name)
    header_size = 4 + 4 * dimensions
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if len(content) < header_size or content[:4] != magic:
        reason = f"no idx header of unsigned bytes in {dimensions} dimension(s)"
        raise corrupt_file(path, name=name, reason=reason)
    shape = struct.unpack(f">{dimensions}I", content[4:header_size])
    wanted, found = math.prod(shape), len(content) - header_size
    if found != wanted:
        reason = f"{found} bytes of data where its header says {wanted}"
        raise corrupt_file(path, name=name, reason=reason)
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape).copy()
