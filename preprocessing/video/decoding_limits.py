"""How much processor time the decoding of one video may take: it follows the frames, not the bytes.

The numbers are some twenty times what the slowest decoders take on one core of a laptop, so that
what is admitted depends neither on the machine nor on what else it does.
"""

from preprocessing.isolation.child import Limits

# Opening, finding the first frame, or going from one frame to the next; also all that is left of
# it when frames come easily. A file that is mostly a hole ends here.
IDLE_CPU_S = 30.0
IDLE_WALL_S = 600.0  # of a disk or network that gives nothing
_FRAME_S = 0.05
_PIXEL_S = 3e-7  # 0.6 s for a frame of 1920x1080
MOST_CPU_HOURS = 8.0
"""The default of the run's `decode_cpu_hours`: ten hours of 4K film, or days of 720p."""


def decoding_limits(cpu_hours: float) -> Limits:
    """Limits of one call that decodes a video, or a part of it."""
    return Limits(idle_cpu_s=IDLE_CPU_S, idle_wall_s=IDLE_WALL_S, total_cpu_s=cpu_hours * 3600)


def worth_of_frame_s(width: int, height: int) -> float:
    """The processor time that one decoded, resized or coded frame may take."""
    return _FRAME_S + _PIXEL_S * width * height
