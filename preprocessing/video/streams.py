"""Which of a file's streams is the video: covers and thumbnails are video streams to ffmpeg too."""

from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from preprocessing.video.damage import DecodeError

_IS_PICTURE = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
# Covers are also stored as ordinary tracks, some of them marked default. These are video codecs as
# well: such a stream is passed over only for one of another codec.
_PICTURE_CODECS = frozenset(("apng", "bmp", "gif", "jpegxl", "mjpeg", "png", "tiff", "webp"))
_DEFAULT_PX = 5_000_000  # how many more pixels another stream needs to be chosen over a default one


def video_stream(container: InputContainer) -> VideoStream:
    """The stream that moves; of several, the one that the ffmpeg program takes by itself.

    Raises:
        DecodeError: there is none, or ffmpeg has no decoder for it.
    """
    streams = container.streams.video
    moving = [stream for stream in streams if not stream.disposition & _IS_PICTURE]
    if not moving:
        rest = "a cover picture" if streams else "subtitles"
        raise DecodeError("no video stream", f"the file holds sound or {rest} only")
    # Without a decoder a stream has no codec context, whatever PyAV's types say.
    decodable = [stream for stream in moving if getattr(stream, "codec_context", None) is not None]
    if not decodable:
        raise DecodeError("undecodable", "ffmpeg has no decoder for its video")
    no_covers = [stream for stream in decodable if not _may_be_cover(stream)]
    return max(no_covers or decodable, key=_rank)  # the first of equals, as in ffmpeg


def _may_be_cover(stream: VideoStream) -> bool:
    return stream.frames == 1 or stream.codec_context.name in _PICTURE_CODECS


def _rank(stream: VideoStream) -> int:
    is_default = bool(stream.disposition & Disposition.default)
    return stream.width * stream.height + _DEFAULT_PX * is_default
