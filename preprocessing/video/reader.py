"""An open video as the frames that a player would show, each with its time.

Hides containers, edit lists, damaged ends, clocks that restart and timestamps that do not advance;
converts no pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from preprocessing.video.clock import Clock, may_restart
from preprocessing.video.codecs import DECODERS, check_codec
from preprocessing.video.damage import reason_for_no_video
from preprocessing.video.streams import video_stream

# An untrusted file must not make us open others: to ffmpeg, playlists are videos too.
_ONLY_THIS_FILE = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,gif,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf,m4v,h264,hevc,"
    "ivf,yuv4mpegpipe,dv,rm,wtv",
    # Also for the look into every stream, sound too, by which ffmpeg opens a file.
    "codec_whitelist": ",".join(sorted(DECODERS)),
}

Shown = tuple[int, av.VideoFrame]  # stamp in ticks, frame
OnFrame = Callable[[av.VideoFrame], None]


def unnoted(_: av.VideoFrame) -> None:
    """For readers whose progress nobody follows."""


class Reader:
    """Iterating gives (stamp in ticks, frame) of every frame that is shown, in order.

    The first damage after the first shown frame ends the video: what follows is the guesswork of
    error concealment. Damage before it, as in recordings that start between key frames, is skipped.
    """

    damage: str  # what ended the video early; empty when it was read to its end
    dropped: int  # frames left out because their time does not advance

    def __init__(
        self, container: InputContainer, stream: VideoStream, on_frame: OnFrame = unnoted
    ) -> None:
        """
        Args:
            on_frame: called with every frame that is decoded, shown or not.
        """
        self.container, self.stream, self._on_frame = container, stream, on_frame
        self.header_frames: int | None = stream.frames or None
        assert stream.time_base is not None, "a demuxed stream has a time base"
        self.tick: Fraction = stream.time_base
        # AVI stores no presentation times; what is reported as such is in decoding order.
        self._stamps_by_dts = container.format.name == "avi"
        self._clock = Clock(self.tick, self.lasts) if may_restart(container) else None
        self.damage, self.dropped = "", 0

    def oddities(self) -> Iterator[str]:
        """Says of the times of the frames read so far what is not as it should be."""
        restarts = self._clock.restarts if self._clock else 0
        if restarts:
            times = "once" if restarts == 1 else f"{restarts} times"
            yield f"its clock restarts {times} and is continued"
        if self.dropped:
            yield f"{self.dropped} frames whose time does not advance are left out"

    def __iter__(self) -> Iterator[Shown]:
        last: int | None = None
        stamped = self._stamped()
        for stamp, frame in self._clock.continued(stamped) if self._clock else stamped:
            if stamp is None:
                stamp = 0 if last is None else last + self.lasts(frame)
            if last is not None and stamp <= last:
                self.dropped += 1
                continue
            last = stamp
            yield stamp, frame

    def _stamped(self) -> Iterator[tuple[int | None, av.VideoFrame]]:
        for frame in self._sound():
            yield (frame.dts if self._stamps_by_dts else frame.pts), frame

    def _sound(self) -> Iterator[av.VideoFrame]:
        """Frames that lean on no damaged one: from the first sound key frame to the next damage."""
        has_shown = leans_on_damage = False
        for frame in self._decoded():
            if frame.is_corrupt:
                self.damage = "a frame is damaged"
                if has_shown:
                    return
            leans_on_damage = frame.is_corrupt or (leans_on_damage and not frame.key_frame)
            if not leans_on_damage:
                has_shown = True
                yield frame

    def lasts(self, frame: av.VideoFrame) -> int:
        """Ticks that the file says `frame` is shown; the nominal rate's where it does not say."""
        if frame.duration:
            return frame.duration
        rate = self.stream.average_rate or self.stream.guessed_rate or 25
        return max(1, round(1 / (rate * self.tick)))

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """What the decoder gives from the first key packet on, until damage after a frame."""
        has_key = has_frame = False
        try:
            for packet in self.container.demux(self.stream):
                has_key = has_key or packet.is_keyframe
                if not has_key:  # its decoding would lean on what is not in the file
                    self.damage = "no key frame" if packet.size else self.damage
                    continue
                try:
                    for frame in packet.decode():
                        self._on_frame(frame)
                        if not has_frame:
                            has_frame, self.damage = True, ""
                        yield frame
                except FFmpegError as error:
                    self.damage = error.strerror or str(error)
                    if has_frame:
                        return
        except FFmpegError as error:
            self.damage = error.strerror or str(error)


@contextmanager
def open_video(path: Path, on_frame: OnFrame = unnoted) -> Iterator[Reader]:
    """Opens the video stream of a file (streams.py).

    Args:
        on_frame: called with every frame that is decoded, shown or not.

    Raises:
        DecodeError: there is none, or none of a codec that is read.
    """
    try:
        # Titles, names and chapters come in any encoding; nothing here reads them.
        container = av.open(f"file:{path}", options=_ONLY_THIS_FILE, metadata_errors="replace")
    except (FFmpegError, OSError, ValueError) as error:
        raise reason_for_no_video(path, error) from None
    with container:
        stream = video_stream(container)
        check_codec(stream)
        stream.thread_type = "NONE"  # one decoder per core; threads inside one cost 9-20 % more
        stream.codec_context.thread_count = 1
        yield Reader(container, stream, on_frame)
