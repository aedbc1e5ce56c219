"""The types of what a store says of itself: somebody else may have written it.

Names of files are names of files of the store, and never lead anywhere else.
"""

from typing import Annotated

from pydantic import Field

LONGEST_SIDE_PX = 65_536
MOST_FRAMES = 10_000_000

ShardName = Annotated[str, Field(pattern=r"^shard-[0-9]{6,9}$")]
ClipKey = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
MemberName = Annotated[str, Field(pattern=r"^[a-z0-9]{1,20}(\.[a-z0-9]{1,20})?$")]
Words = Annotated[str, Field(max_length=500)]
Seconds = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]  # per second
Frames = Annotated[int, Field(ge=1, le=MOST_FRAMES)]  # of a clip
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE_PX)]  # px
