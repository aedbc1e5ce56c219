"""Arrays in shards: float16 .npy files, whose headers are checked before anything is allocated."""

import functools
import io
import math
import tokenize

import numpy as np

from videoldm_core.errors import ShardError, reason_of

HEADER_BYTES = 128  # of every .npy in a shard: numpy pads headers as short as ours to 128


def npy_bytes(array: np.ndarray) -> bytes:
    """The .npy file of a float16 array."""
    assert array.dtype == np.float16, f"shards hold float16, got {array.dtype}"
    stream = io.BytesIO()
    np.lib.format.write_array(
        stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
    )
    return stream.getvalue()


def parse_npy(content: bytes) -> np.ndarray:
    """The array of a float16 .npy file.

    Raises:
        ShardError: it is no .npy of float16 in C order, or has more or fewer values than it says.
    """
    shape, start = parse_npy_header(content, size=len(content))
    return np.frombuffer(content, np.float16, offset=start).reshape(shape)


@functools.lru_cache(maxsize=256)
def _header_of(head: bytes) -> tuple[tuple[int, ...], int]:
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"it has version {version}, expected (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if (dtype, fortran_order) != (np.float16, False):
        raise ValueError(f"it holds {dtype}, expected float16 in C order")
    if any(side < 0 for side in shape):
        raise ValueError(f"it has the shape {shape}")
    return shape, stream.tell()


def parse_npy_header(head: bytes, *, size: int) -> tuple[tuple[int, ...], int]:
    """Shape of a float16 .npy and where its data starts, from its first HEADER_BYTES or more.

    Args:
        size: of the whole file, bytes.

    Raises:
        ShardError: it is no .npy of float16 in C order, or its size is not that of its shape.
    """
    try:
        shape, start = _header_of(head[:HEADER_BYTES])
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ShardError(
            f"A shard's array begins with {head[:16]!r}, expected a float16 .npy "
            f"({reason_of(error)}); delete the shard and run the encode step again."
        ) from None
    expected = start + 2 * math.prod(shape)
    if size != expected:
        raise ShardError(
            f"A shard's array of shape {shape} has {size} bytes, expected {expected}; delete the "
            "shard and run the encode step again."
        )
    return shape, start


class SameShapes:
    """The shapes of one store's arrays: those of all clips are the same, but for their frames."""

    def __init__(self) -> None:
        self._latent: tuple[int, ...] | None = None
        self._text: tuple[int, ...] | None = None

    def check_latents(self, shape: tuple[int, ...], frames: int, *, clip: str) -> None:
        """Refuses latents that are not t c h w with t = `frames`, and c h w as in other clips.

        Raises:
            ShardError: names the clip and the shapes.
        """
        self._latent = self._latent or shape[1:]
        if len(shape) != 4 or 0 in shape or shape != (frames, *self._latent):
            _refuse(clip, shape, f"({frames}, c, h, w) as in the store's other clips")

    def check_text(self, shape: tuple[int, ...], *, clip: str) -> None:
        """Refuses an embedding that is not l d as in other clips.

        Raises:
            ShardError: names the clip and the shapes.
        """
        self._text = self._text or shape
        if len(shape) != 2 or 0 in shape or shape != self._text:
            _refuse(clip, shape, "(l, d) as in the store's other clips")


def _refuse(clip: str, shape: tuple[int, ...], expected: str) -> None:
    raise ShardError(
        f"An array of clip {clip} has the shape {shape}, expected {expected}; delete its shard and "
        "run the encode step again."
    )
