"""How many replicas there are and who gets which rows, in simulated time: no Ray, no waiting."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

import pytest

from skllm_ray.execution.assignment import CALLS_EACH, Load, Speed, assign, block_sizes, pieces
from skllm_ray.execution.scaling import Claim, Demand, Seat, Wanted, giver, to_leave, wanted


@dataclass
class Server:
    """A replica that works at one call after the other."""

    rate: float
    load: Load = field(default_factory=Load)
    speed: Speed = field(default_factory=Speed)
    queue: list[tuple[int, int]] = field(default_factory=list)
    busy: bool = False


def run_call(rates: list[float], sizes: list[int], slots: int, known: int | None = None) -> float:
    """Return how long a call takes whose blocks are handed out by `assign`, to replicas of these speeds.

    `known` is the only replica whose speed an earlier call has shown.
    """
    servers = {number: Server(rate) for number, rate in enumerate(rates)}
    if known is not None:
        servers[known].speed.end(1, 1 / rates[known])
        servers[known].load.rate = rates[known]
    waiting, left, now = list(reversed(sizes)), sum(sizes), 0.0
    open_parts: dict[int, int] = {}
    events: list[tuple[float, int, int, int, int]] = []
    numbers = itertools.count()
    blocks: list[tuple[int, int]] = []

    def begin(server: Server, number: int) -> None:
        if not server.busy and server.queue:
            block, rows = server.queue[0]
            server.busy = True
            heapq.heappush(events, (now + rows / server.rate, next(numbers), number, block, rows))

    while left:
        while waiting and len(open_parts) + len(blocks) < slots:
            blocks.append((next(numbers), waiting.pop()))
        for block, rows in list(blocks):
            for server in servers.values():
                server.load.at_most = server.speed.at_most(server.load.rows, now)
            chosen = assign({number: server.load for number, server in servers.items()}, rows, left)
            if not chosen:
                continue
            blocks.remove((block, rows))
            open_parts[block] = len(chosen)
            for number, some in chosen:
                server = servers[number]
                server.speed.begin(now, idle=not server.load.calls)
                server.load.rows, server.load.calls = server.load.rows + some, server.load.calls + 1
                server.queue.append((block, some))
                begin(server, number)
        now, _, number, block, rows = heapq.heappop(events)
        server = servers[number]
        server.queue.pop(0)
        server.busy = False
        server.speed.end(rows, now)
        server.load.rows, server.load.calls = server.load.rows - rows, server.load.calls - 1
        server.load.rate = server.speed.rate
        left -= rows
        open_parts[block] -= 1
        if not open_parts[block]:
            del open_parts[block]
        begin(server, number)
    return now


@pytest.mark.parametrize("rows", [3_000, 12_000, 40_000])
@pytest.mark.parametrize(
    "rates",
    [
        [10.0] * 4,
        [10.0, 10.0, 10.0, 2.0],
        [2.0] + [10.0] * 3,
        [1.0, 5.0, 25.0],
        [1.0, 100.0],
        [0.2] + [10.0] * 3,
        [1.0] * 4 + [100.0] * 2,
    ],
)
def test_a_call_ends_close_to_the_ideal_time_whatever_the_speeds(rows: int, rates: list[float]) -> None:
    slots = CALLS_EACH * len(rates)
    took = run_call(rates, block_sizes(rows, slots), slots)
    assert took <= 1.15 * rows / sum(rates)


@pytest.mark.parametrize("rows", [1_500, 6_000])
@pytest.mark.parametrize("rates", [[10.0, 50.0, 50.0, 50.0], [50.0, 50.0, 10.0, 50.0], [8.0, 100.0, 100.0]])
def test_a_call_ends_close_to_the_ideal_time_where_one_speed_is_known(rows: int, rates: list[float]) -> None:
    slots = CALLS_EACH * len(rates)
    for known in range(len(rates)):
        assert run_call(rates, block_sizes(rows, slots), slots, known) <= 1.15 * rows / sum(rates)


def test_equal_replicas_are_used_to_the_last_row() -> None:
    assert run_call([10.0] * 4, block_sizes(20_000, 8), 8) <= 1.05 * 20_000 / 40


def test_what_is_handed_out_is_the_whole_block_or_nothing() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        rows, whole = rng.randint(1, 5000), rng.random() < 0.3
        left = rng.choice([None, rng.randint(0, 10_000)])
        held = {
            number: Load(
                rng.randint(0, 600),
                rng.randint(0, 3),
                rng.choice([None, rng.uniform(0.01, 1000)]),
                leaving=rng.random() < 0.2,
            )
            for number in range(rng.randint(0, 6))
        }
        found = assign(held, rows, left, whole=whole)
        assert not found or sum(some for _, some in found) == rows
        assert all(some > 0 for _, some in found)
        assert len({number for number, _ in found}) == len(found)
        assert not any(held[number].leaving for number, _ in found)
        assert not whole or len(found) <= 1
        usable = [load for load in held.values() if not load.leaving]
        if usable and not any(load.calls or load.rows for load in usable):
            assert found  # nobody waits where nobody works


def test_a_replica_on_a_node_that_goes_gets_nothing() -> None:
    assert assign({1: Load(leaving=True)}, 10, left=10) == []
    assert assign({1: Load(leaving=True), 2: Load()}, 10, left=10) == [(2, 10)]


def test_a_replica_has_two_blocks_at_most_and_small_calls_wait_for_none() -> None:
    full = {1: Load(512, 2, 100.0)}
    assert assign(full, 256, left=None) == []
    assert assign(full, 3, left=None) == [(1, 3)]


def test_speeds_are_learnt_from_what_is_done() -> None:
    speed = Speed()
    assert speed.rate is None
    speed.begin(10.0, idle=True)
    speed.end(100, 20.0)
    assert speed.rate == pytest.approx(10.0)
    speed.begin(50.0, idle=True)  # the pause does not count
    speed.end(100, 55.0)
    assert speed.rate == pytest.approx((80 + 100) / (8 + 5))


@pytest.mark.parametrize(
    ("demand", "least", "most", "rate", "start_s", "expected"),
    [
        (Demand(0), 1, 4, None, None, Wanted(1, 1)),
        (Demand(600), 1, 4, None, None, Wanted(2, 4)),
        (Demand(1_000_000), 2, 8, 50.0, 120.0, Wanted(8, 8)),
        (Demand(5_000), 1, 8, 50.0, 120.0, Wanted(1, 8)),  # done before another one would be there
        (Demand(64, 64, 1, 1), 1, 8, 50.0, 120.0, Wanted(1, 1)),
        (Demand(None, calls=7), 1, 8, None, None, Wanted(4, 4)),
        (Demand(None, calls=0), 1, 8, None, None, Wanted(1, 1)),
    ],
)
def test_there_are_as_many_replicas_as_the_backlog_needs(demand, least, most, rate, start_s, expected) -> None:
    assert wanted(demand, least, most, rate, start_s) == expected


def test_whole_nodes_go_first_and_then_the_slowest() -> None:
    seats = [Seat(1, "a", 60.0, 9.0), Seat(2, "a", 0.0, 9.0), Seat(3, "b", 60.0, 9.0), Seat(4, "c", 60.0, 1.0)]
    assert to_leave(seats, keep=2, idle_s=10.0) == [3, 4]
    assert to_leave(seats, keep=1, idle_s=10.0) == [3, 4, 1]
    assert to_leave(seats, keep=0, idle_s=99.0) == []
    assert to_leave(seats, keep=6, idle_s=10.0) == []  # more shall stay than there are


def test_a_model_gives_a_replica_to_one_that_waits_and_never_its_last() -> None:
    waits = Claim("b", 0, 1, waits_s=9.0, work_s=10.0)
    assert giver([Claim("a", 3, 1, work_s=100.0), waits], 5.0) == "a"
    assert giver([Claim("a", 1, 1, work_s=0.0), waits], 5.0) is None
    assert giver([Claim("a", 3, 1, work_s=100.0, kind="CPU"), waits], 5.0) is None
    served = Claim("b", 2, 1, waits_s=9.0, work_s=100.0)
    assert giver([Claim("a", 3, 1, work_s=100.0), served], 5.0) is None  # no far less work than the other
    assert giver([Claim("a", 3, 1, work_s=20.0), served], 5.0) == "a"


def test_two_models_that_share_four_places_both_get_on_whatever_their_backlogs() -> None:
    """Each step moves one replica; no state in which somebody waits without a replica lasts."""
    rng = random.Random(3)
    for _ in range(200):
        held = {"a": 4, "b": 0}
        work = {name: rng.choice([0.0, 1.0, 50.0, 1000.0]) for name in held}
        for _ in range(8):
            claims = [
                Claim(name, n, 1, waits_s=9.0 if n < 4 and (work[name] or not n) else 0.0, work_s=work[name])
                for name, n in held.items()
            ]
            key = giver(claims, 5.0)
            if key is None:
                break
            held[key] -= 1
            held["b" if key == "a" else "a"] += 1
        assert min(held.values()) >= 1


@pytest.mark.parametrize("rows", [0, 1, 31, 33, 256, 1000, 50_000])
@pytest.mark.parametrize("slots", [1, 7, 64])
def test_blocks_hold_all_rows_and_become_smaller(rows: int, slots: int) -> None:
    sizes = block_sizes(rows, slots)
    assert sum(sizes) == rows
    assert sorted(sizes[1:], reverse=True) == sizes[1:]  # after the first, which shows how fast replicas are


def test_units_are_cut_into_pieces_that_are_not_needlessly_small() -> None:
    rng = random.Random(2)
    for _ in range(500):
        sizes = [rng.randint(1, 8192) for _ in range(rng.randint(0, 40))]
        counts = pieces(sizes, rng.randint(1, 64))
        assert len(counts) == len(sizes)
        assert all(n == 1 or rows / n >= 32 for rows, n in zip(sizes, counts, strict=True))
