"""What happens in one generated drive: time of day, road, cars and roadside, as plain numbers.

Distances are metres from the camera: x to the right, z ahead along the road. Everything moves with
a constant velocity, so two moments of a drive determine the rest; speeds suit drives of about 6 s.
Knows nothing about pixels.
"""

import random
from collections.abc import Sequence
from typing import Literal, TypeVar

from videoldm_core.records import Record

T = TypeVar("T")
Time = Literal["by day", "at dusk", "at night"]
Backdrop = Literal["hills", "mountains", "a city"]
Scenery = Literal["trees", "pines", "houses", "lamps"]
Kind = Literal["tree", "pine", "house", "lamp"]
TIMES: tuple[Time, ...] = ("by day", "at dusk", "at night")
BACKDROPS: tuple[Backdrop, ...] = ("hills", "mountains", "a city")
KINDS: dict[Scenery, Kind] = {"trees": "tree", "pines": "pine", "houses": "house", "lamps": "lamp"}
SCENERIES = tuple(KINDS)
COLOURS = ("red", "blue", "white", "yellow", "green")
LANE_M = 3.3
DASH_PERIOD_M = 10.0  # more than twice what passes in a second, so that 1 s steps do not alias


class Event(Record):
    """A kind of movement relative to the camera; ranges are sampled per car."""

    phrase: str  # of the caption, with {car}
    lane: int  # where the car starts: -1 left of ours, 0 ours, 1 right of ours
    to_lane: int | None = None  # where it ends up, if elsewhere, by a steady sideways drift
    towards_us: bool = False
    sideways_mps: tuple[float, float] = (0.0, 0.0)
    gap_m: tuple[float, float] = (0.0, 0.0)  # to the near end of the car at 0 s
    speed_mps: tuple[float, float] = (0.0, 0.0)  # away from the camera
    per_ego_speed: tuple[float, float] | None = None  # approaches at this multiple of our own speed


EVENTS = {
    "overtakes": Event(
        phrase="{car} overtakes us", lane=-1, gap_m=(1.2, 3.5), speed_mps=(1.2, 2.4)
    ),
    "overtaken": Event(phrase="we overtake {car}", lane=1, per_ego_speed=(0.55, 0.85)),
    "oncoming": Event(
        phrase="{car} comes towards us", lane=-1, towards_us=True, per_ego_speed=(1.15, 1.5)
    ),
    "ahead": Event(phrase="{car} drives ahead", lane=0, gap_m=(6.5, 10.0)),
    "leaves": Event(phrase="{car} pulls away", lane=0, gap_m=(5.0, 7.0), speed_mps=(0.9, 1.8)),
    "nears": Event(
        phrase="we catch up with {car}", lane=0, gap_m=(13.0, 16.0), speed_mps=(-1.7, -1.1)
    ),
    "enters": Event(
        phrase="{car} moves into our lane",
        lane=-1,
        to_lane=0,
        gap_m=(6.5, 9.0),
        sideways_mps=(0.45, 0.6),
    ),
    "exits": Event(
        phrase="{car} moves out of our lane",
        lane=0,
        to_lane=-1,
        gap_m=(6.5, 9.0),
        sideways_mps=(-0.6, -0.45),
    ),
}
SECOND_CARS = {
    "overtakes": ("overtaken",),
    "overtaken": ("oncoming", "overtakes"),
    "oncoming": ("overtaken", "ahead"),
    "ahead": ("oncoming", "overtaken"),
    "leaves": ("oncoming",),
    "nears": ("oncoming",),
    "enters": ("overtaken",),
    "exits": ("overtaken",),
}


class Car(Record):
    """A car with a constant velocity relative to the camera."""

    event: str  # key of EVENTS
    colour: str
    x_m: float  # middle of the car at 0 s
    z_m: float  # its near end at 0 s
    sideways_mps: float
    speed_mps: float

    @property
    def towards_us(self) -> bool:
        """Whether we look at its front."""
        return EVENTS[self.event].towards_us

    def at(self, time_s: float) -> tuple[float, float]:
        """(x, z) in metres at `time_s`."""
        return self.x_m + self.sideways_mps * time_s, self.z_m + self.speed_mps * time_s


class Roadside(Record):
    """A standing thing beside the road."""

    kind: Kind
    x_m: float
    z_m: float  # at 0 s
    size: float  # 1 is ordinary
    look: int  # picks colour and shape


class Scene(Record):
    """One drive, complete: `caption` and every frame follow from it."""

    time: Time
    backdrop: Backdrop
    scenery: Scenery
    camera_m: float  # height above the road
    horizon: float  # share of the frame's height above it
    curve_per_m: float  # curvature of the road, positive to the right
    ego_mps: float
    lanes: tuple[int, ...]
    cars: tuple[Car, ...]
    roadside: tuple[Roadside, ...]
    look: int

    @property
    def caption(self) -> str:
        """One sentence that is true of the whole drive."""
        cars = " and ".join(
            EVENTS[car.event].phrase.format(car=f"a {car.colour} car") for car in self.cars
        )
        return f"{cars} {self.time}, {self.scenery} by the road, {self.backdrop} ahead"


def compose_scene(index: int, *, seed: int) -> Scene:
    """The `index`-th drive of the world `seed`; events, times and colours come in equal shares."""
    chance = random.Random(f"{seed} {index}")
    event = _dealt(tuple(EVENTS), index, seed=seed)
    colour = _dealt(COLOURS, index, seed=seed + 1)
    ego_mps = chance.uniform(1.6, 4.0)
    cars = [_car(event, colour, ego_mps, chance)]
    # Nothing else moves when a car keeps its distance.
    if event == "ahead" or chance.random() < 0.35:
        second = chance.choice(SECOND_CARS[event])
        others = [other for other in COLOURS if other != colour]
        cars.append(_car(second, chance.choice(others), ego_mps, chance))
    used = {lane for car in cars for lane in _lanes_of(EVENTS[car.event])}
    scenery = _dealt(SCENERIES, index, seed=seed + 2)
    lanes = _lanes(used, chance)
    return Scene(
        time=_dealt(TIMES, index, seed=seed + 3),
        backdrop=_dealt(BACKDROPS, index, seed=seed + 4),
        scenery=scenery,
        camera_m=chance.uniform(1.7, 2.3),
        horizon=chance.uniform(0.38, 0.46),
        curve_per_m=chance.choice((-1, 1)) * chance.uniform(0.0, 0.004),
        ego_mps=ego_mps,
        lanes=lanes,
        cars=tuple(cars),
        roadside=_roadside(scenery, lanes, chance),
        look=chance.randrange(1 << 30),
    )


def _dealt(options: Sequence[T], index: int, *, seed: int) -> T:
    """Deals options like cards: each comes once per round, in an order that differs per round."""
    order = random.Random(f"deal {seed} {index // len(options)}").sample(options, len(options))
    return order[index % len(options)]


def _lanes_of(event: Event) -> tuple[int, ...]:
    return (event.lane,) if event.to_lane is None else (event.lane, event.to_lane)


def _lanes(used: set[int], chance: random.Random) -> tuple[int, ...]:
    lanes = used | {0, chance.choice((-1, 1))}
    return tuple(sorted(lanes))


def _car(name: str, colour: str, ego_mps: float, chance: random.Random) -> Car:
    event = EVENTS[name]
    if event.per_ego_speed:
        speed_mps = -ego_mps * chance.uniform(*event.per_ego_speed)
        # Passes the camera 5 to 6.5 s after the start, whatever its speed.
        gap_m = 0.5 - speed_mps * chance.uniform(5.0, 6.5)
    else:
        speed_mps, gap_m = chance.uniform(*event.speed_mps), chance.uniform(*event.gap_m)
    return Car(
        event=name,
        colour=colour,
        x_m=event.lane * LANE_M,
        z_m=gap_m,
        sideways_mps=chance.uniform(*event.sideways_mps),
        speed_mps=speed_mps,
    )


def _roadside(
    scenery: Scenery, lanes: tuple[int, ...], chance: random.Random
) -> tuple[Roadside, ...]:
    """Things on both sides, far enough apart to be told apart after a second."""
    kind = KINDS[scenery]
    spacing_m, aside_m = {"house": (24.0, 6.5), "lamp": (24.0, 1.6)}.get(kind, (17.0, 3.0))
    things = []
    for side in (-1, 1):
        edge_m = (max(lanes) if side > 0 else -min(lanes)) * LANE_M + LANE_M / 2
        z_m = chance.uniform(4.0, spacing_m)
        while z_m < 130.0:
            x_m = side * (edge_m + aside_m + (0 if kind == "lamp" else chance.uniform(0.0, 2.5)))
            size = 1.0 if kind == "lamp" else chance.uniform(0.85, 1.2)
            look = chance.randrange(1 << 16)
            things.append(Roadside(kind=kind, x_m=x_m, z_m=z_m, size=size, look=look))
            z_m += spacing_m * (1 if kind == "lamp" else chance.uniform(0.85, 1.25))
    return tuple(things)
