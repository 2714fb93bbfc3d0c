import pytest

from distill.machine.timing import speedup, summarise, time_in_turn


def test_calls_are_timed_in_blocks_in_turn_after_a_warm_up():
    order = []
    latencies = time_in_turn(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=7, pause_seconds=0
    )
    assert "".join(order) == "aaaaaaabbbbbbb" * 2  # 2 that do not count and 5 that do; 7 rounds need two blocks
    assert {name: len(values) for name, values in latencies.items()} == {"a": 10, "b": 10}


def test_every_timed_call_is_waited_for():
    events = []
    time_in_turn({"a": lambda: events.append("call")}, 5, synchronize=lambda: events.append("wait"), pause_seconds=0)
    timed = events[events.index("wait") + 1 :]
    assert timed == ["call", "wait"] * 5


def test_progress_counts_every_timed_call():
    done = []
    time_in_turn({"a": lambda: None, "b": lambda: None}, 10, pause_seconds=0, progress=done.append)
    assert sum(done) == 20


def test_percentiles_rise():
    summary = summarise([float(value) for value in range(1, 101)])
    assert summary["p50"] == 50.5
    assert summary["p50"] < summary["p95"] < summary["p99"] <= 100
    assert len(summary["raw"]) == 100


def test_a_speed_up_is_of_blocks_timed_in_turn():
    found = speedup([40.0] * 5 + [80.0] * 5 + [40.0] * 5, [10.0] * 5 + [20.0] * 5 + [8.0] * 5)
    assert found == (4.0, 4.0, 5.0, 3) and not found.is_scattered
    with pytest.raises(ValueError):
        speedup([40.0] * 10, [10.0] * 5)
