"""Video decoders that are trusted with strangers' files: those of footage, and no others.

ffmpeg has some 300, most for games and screens of the nineties that hardly anyone has read since;
each is C code that parses what a stranger wrote.
"""

from av.video.stream import VideoStream

from preprocessing.video.damage import DecodeError

_TODAY = "av1 h264 hevc libdav1d vp8 vp9 vvc gif"
_EDITING = "cfhd dnxhd dvvideo ffv1 ffvhuff hap huffyuv jpeg2000 magicyuv mjpeg png prores qtrle"
_RAW = "r210 rawvideo utvideo v210 v308 v408 v410 yuv4"
_CAMERAS_OF_OLD = "flv h261 h263 h263i h263p mjpegb mpeg1video mpeg2video mpeg4 msmpeg4 msmpeg4v1"
_WEB_OF_OLD = (
    "msmpeg4v2 rv10 rv20 rv30 rv40 svq1 svq3 theora vc1 vp3 vp6 vp6a vp6f wmv1 wmv2 wmv3 cinepak"
)
DECODERS = frozenset(" ".join([_TODAY, _EDITING, _RAW, _CAMERAS_OF_OLD, _WEB_OF_OLD]).split())
"""Names of ffmpeg's decoders."""


def check_codec(stream: VideoStream) -> None:
    """Refuses a stream whose codec is not read.

    Raises:
        DecodeError: names the codec.
    """
    name = stream.codec_context.name
    if name not in DECODERS:
        raise DecodeError("codec not read", f"codec {name} is not read; re-encode it as H.264")
