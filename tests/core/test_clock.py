"""The clock for tests moves only when it is advanced; the system's moves by itself."""

from sticky_core.clock import ManualClock, SystemClock


def test_a_manual_clock_stands_still_until_it_is_advanced():
    clock = ManualClock(wall=1000.0)
    assert (clock.wall(), clock.monotonic()) == (1000.0, 0.0)
    assert (clock.wall(), clock.monotonic()) == (1000.0, 0.0)


def test_both_times_of_a_manual_clock_advance_together():
    clock = ManualClock(wall=1000.0)
    clock.advance(2.5)
    clock.advance(0.5)
    assert (clock.wall(), clock.monotonic()) == (1003.0, 3.0)


def test_the_system_clock_does_not_go_back():
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
    assert clock.wall() > 1_700_000_000
