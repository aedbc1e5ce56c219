"""The clips of pixel shards: all-intra, near-lossless mp4, written with PyAV, read with decord.

The video is coded as RGB (libx264rgb), so no colour matrix, range or chroma subsampling lies
between the frames that
were written and those that are read: measured on natural footage 48-52 dB without bias, where
yuv444p at the same speed shifts colours by half a grey level. Nothing here reads videos that others
made (preprocessing/video/decode.py).
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from fractions import Fraction

import numpy as np

from videoldm_core.errors import ShardError

# Changing any of these makes another store: they are part of its identity.
CODEC = "libx264rgb"
# One thread per clip (clips are encoded side by side): the bytes then depend on nothing but the
# frames.
CODEC_OPTIONS = {"crf": "12", "preset": "ultrafast", "threads": "1"}
# decord fails on some narrow widths (48, 96, 144) and on no multiple of 64: frames are widened.
WIDTH_MULTIPLE_PX = 64
CODEC_NAME = (
    f"{CODEC} {' '.join(f'{key}={value}' for key, value in CODEC_OPTIONS.items())} gop=1 v1"
)


def encode_clip(frames: Iterable[np.ndarray], *, fps: float) -> bytes:
    """Codes frames so that each can be decoded alone.

    Args:
        frames: uint8 (h w 3) each, RGB, all of one size; looked at one by one.
        fps: for players; readers count frames.

    Returns:
        An mp4 file; equal frames give equal bytes.
    """
    import av

    stream_of_bytes = io.BytesIO()
    with av.open(stream_of_bytes, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream(CODEC, rate=rate, options=CODEC_OPTIONS)
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 1, 0
        stream.pix_fmt = "rgb24"
        for number, frame in enumerate(frames):
            wide = _widened(frame)
            if number == 0:
                stream.height, stream.width = wide.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(wide, format="rgb24")))
        container.mux(stream.encode(None))
    return stream_of_bytes.getvalue()


def _widened(frame: np.ndarray) -> np.ndarray:
    assert (frame.dtype, frame.ndim) == (np.uint8, 3), f"expected (h w 3), got {frame.shape}"
    widening = -frame.shape[1] % WIDTH_MULTIPLE_PX
    return np.pad(frame, [(0, 0), (0, widening), (0, 0)], mode="edge") if widening else frame


def decode_clip_frames(video: bytes, frames: Sequence[int], *, width_px: int) -> np.ndarray:
    """Decodes some frames of a clip that `encode_clip` made.

    Args:
        width_px: of the frames that were encoded; what widened them is cut off.

    Returns:
        uint8 (t h w 3), in the order asked for.

    Raises:
        ShardError: the bytes are damaged, or the clip has fewer frames.
    """
    import decord

    # An idle decord reader keeps hundreds of MB; none outlives this call.
    try:
        reader = decord.VideoReader(io.BytesIO(video), ctx=decord.cpu(0), num_threads=1)
        if max(frames) >= len(reader):
            raise ShardError(
                f"A clip of a pixel shard has {len(reader)} frames and frame {max(frames)} is "
                "wanted; delete the shard and run the encode step again."
            )
        batch = reader.get_batch(list(frames))
    except (decord.DECORDError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ShardError(
            f"A clip of a pixel shard cannot be decoded ({first_line}); delete the shard and run "
            "the encode step again."
        ) from None
    # decord's bridge is a process-wide setting; torch tensors and numpy arrays convert as well.
    decoded = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
    return decoded[:, :, :width_px]


class FrameCache:
    """The frames read last, up to a limit: a small store is decoded once, not every epoch."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes, self._bytes = limit_bytes, 0
        self._frames: OrderedDict[tuple[Hashable, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of all frames kept."""
        return self._bytes

    def read(
        self,
        key: Hashable,
        frames: Sequence[int],
        decode: Callable[[Sequence[int]], dict[int, np.ndarray]],
    ) -> np.ndarray:
        """Frames of the clip `key`, uint8 (t h w 3).

        Args:
            decode: is asked for the frames that are not kept; may return others with them.
        """
        with self._lock:
            found = {t: self._frames[key, t] for t in frames if (key, t) in self._frames}
            for t in found:
                self._frames.move_to_end((key, t))
        missing = sorted(set(frames) - set(found))
        if missing:
            decoded = decode(missing)
            self._keep(key, decoded)
            found |= decoded
        return np.stack([found[t] for t in frames])

    def _keep(self, key: Hashable, frames: dict[int, np.ndarray]) -> None:
        with self._lock:
            for t, frame in frames.items():
                if (key, t) not in self._frames and frame.nbytes <= self.limit_bytes:
                    # A copy: a view would keep the whole decoded batch alive.
                    self._frames[key, t] = frame.copy()
                    self._bytes += frame.nbytes
            while self._bytes > self.limit_bytes:
                _, oldest = self._frames.popitem(last=False)
                self._bytes -= oldest.nbytes
