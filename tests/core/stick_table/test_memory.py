"""Entries of a stick table: what is kept, for how long, and what is purged. Compared with a plain model by random
steps, and tested by rows where the order matters.
"""

from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sticky_core.stick_table.memory import PARTS, Entries

KEYS = st.sampled_from("abcdefghijklmnop")
SERVERS = st.sampled_from(["web1", "web2", "web3"])


class EntriesAgainstModel(RuleBasedStateMachine):
    """A model remembers when each key was used; the entries may forget it only if it is old, or was the oldest."""

    size = 6
    expire: float = 80.0

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.entries: Entries[str] = Entries(self.size, self.expire, by_use=False)
        self.model: dict[str, tuple[str, float]] = {}

    @property
    def step(self):
        return self.expire / PARTS

    def alive(self, key):
        return key in self.model and self.now < self.model[key][1] + self.expire

    def dead(self, key):
        return key not in self.model or self.now >= self.model[key][1] + self.expire + self.step

    def purged(self):
        """Remove from the model what the entries have dropped, which must have been old."""
        for key in [key for key in self.model if self.entries.peek(key, self.now) is None]:
            used = self.model.pop(key)[1]
            if self.now < used + self.expire:  # it had not expired
                assert len(self.model) >= self.size - 1, f"{key} was purged, and the table was not full"
                oldest = min((at for _, at in self.model.values()), default=used)
                assert used <= oldest + self.step, f"{key} was purged, and an older one is kept"

    @rule(key=KEYS, server=SERVERS)
    def put(self, key, server):
        assert self.entries.put(key, server, self.now)
        self.model[key] = server, self.now
        assert self.entries.peek(key, self.now) == server
        self.purged()

    @rule(key=KEYS)
    def get(self, key):
        found = self.entries.get(key, self.now)
        if self.alive(key):
            assert found == self.model[key][0]
        if self.dead(key):
            assert found is None
        if found is None:
            self.model.pop(key, None)
        else:
            self.model[key] = found, self.now

    @rule(key=KEYS, server=SERVERS)
    def reserve(self, key, server):
        before = self.entries.peek(key, self.now)
        assert self.entries.reserve(key, server, self.now) == (before or server)
        if before is None:
            self.model[key] = server, self.now
        self.purged()

    @rule(key=KEYS, server=SERVERS)
    def forget(self, key, server):
        here = self.entries.peek(key, self.now)
        forgotten = self.entries.forget(key, server)
        if here is not None:
            assert forgotten is (here == server)
        if forgotten:
            self.model.pop(key, None)
            assert self.entries.peek(key, self.now) is None

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0, 79.0, 200.0]))
    def wait(self, seconds):
        self.now += seconds
        for key in [key for key in self.model if self.dead(key)]:
            assert self.entries.peek(key, self.now) is None
            del self.model[key]

    @precondition(lambda self: self.model)
    @rule()
    def clear(self):
        self.entries.clear()
        self.model.clear()

    @invariant()
    def there_are_never_more_than_size(self):
        assert len(self.entries) <= self.size

    @invariant()
    def every_entry_is_listed_once(self):
        listed = [key for key, _, _ in self.entries.items(self.now)]
        assert len(listed) == len(set(listed))
        assert {key for key in self.model if self.alive(key)} <= set(listed)


class EntriesWithoutExpiry(EntriesAgainstModel):
    """The same where nothing expires."""

    expire = 1e9


class EntriesInOrderOfUse(RuleBasedStateMachine):
    """A small table without expiry knows the exact order of uses."""

    size = 4

    def __init__(self):
        super().__init__()
        self.entries: Entries[str] = Entries(self.size)
        self.order: list[str] = []

    def used(self, key):
        self.order = [each for each in self.order if each != key] + [key]
        self.order = self.order[-self.size :]

    @rule(key=KEYS)
    def put(self, key):
        self.entries.put(key, "web1", 0.0)
        self.used(key)

    @rule(key=KEYS)
    def get(self, key):
        assert (self.entries.get(key, 0.0) is not None) is (key in self.order)
        if key in self.order:
            self.used(key)

    @invariant()
    def the_latest_used_are_kept(self):
        assert {key for key, _, _ in self.entries.items(0.0)} == set(self.order)


LONG = settings(max_examples=40, stateful_step_count=50, deadline=None)
for machine in (EntriesAgainstModel, EntriesWithoutExpiry, EntriesInOrderOfUse):
    machine.TestCase.settings = LONG

TestEntriesAgainstModel = EntriesAgainstModel.TestCase
TestEntriesWithoutExpiry = EntriesWithoutExpiry.TestCase
TestEntriesInOrderOfUse = EntriesInOrderOfUse.TestCase


def test_unused_entry_expires_an_eighth_late_at_most():
    entries: Entries[Any] = Entries(10, 80.0)
    entries.put("stays", "web1", 0.0)
    entries.put("goes", "web1", 0.0)
    for now in range(0, 400, 70):
        assert entries.get("stays", float(now)) == "web1"
    assert entries.peek("goes", 79.9) is None  # it has expired long before
    fresh: Entries[Any] = Entries(10, 80.0)
    fresh.put("goes", "web1", 0.0)
    assert fresh.peek("goes", 80.0) == "web1"
    assert fresh.peek("goes", 90.0) is None


def test_peek_does_not_renew_the_expiry():
    entries: Entries[Any] = Entries(10, 80.0)
    entries.put("a", "web1", 0.0)
    for now in range(0, 90, 5):
        entries.peek("a", float(now))
    assert entries.peek("a", 90.0) is None


def test_entry_that_was_used_a_moment_ago_is_read_without_the_lock():
    entries: Entries[Any] = Entries(10, 80.0)
    entries.put("a", "web1", 0.0)
    with entries._lock:  # it is not reentrant: a use that waited for it would not end
        assert entries.get("a", 5.0) == "web1"
    assert [left for _, _, left in entries.items(15.0)] == [65.0]
    entries.get("a", 15.0)
    assert [left for _, _, left in entries.items(15.0)] == [80.0]
    entries.forget("a")
    assert entries.get("a", 15.0) is None


def test_oldest_unused_entry_is_purged():
    entries: Entries[Any] = Entries(3)
    for key in "abc":
        entries.put(key, "web1", 0.0)
    entries.get("a", 0.0)
    entries.put("d", "web1", 0.0)
    assert sorted(key for key, _, _ in entries.items(0.0)) == ["a", "c", "d"]


def test_with_nopurge_a_new_key_is_refused_until_another_expires():
    entries: Entries[Any] = Entries(2, 80.0, nopurge=True)
    assert entries.put("a", "web1", 0.0) and entries.put("b", "web1", 0.0)
    assert not entries.put("c", "web1", 10.0)
    assert entries.put("a", "web2", 10.0)  # a key that is kept may still move
    assert entries.put("c", "web1", 95.0)  # b has expired


def test_key_is_reserved_for_the_first_server_and_moves_only_from_the_previous_one():
    entries: Entries[Any] = Entries(10)
    assert entries.reserve("a", "web1", 0.0) == "web1"
    assert entries.reserve("a", "web2", 0.0) == "web1"
    assert entries.reserve("a", "web2", 0.0, previous="web3") == "web1"
    assert entries.reserve("a", "web2", 0.0, previous="web1") == "web2"


def test_putting_and_forgetting_a_key_again_and_again_keeps_nothing():
    entries: Entries[Any] = Entries(100, 80.0)
    for _ in range(10_000):
        entries.put("a", "web1", 1.0)
        entries.forget("a")
    assert len(entries) == 0
    assert sum(len(age.keys) for age in entries._generations) <= 1


@pytest.mark.parametrize("size", [16, 5000])
def test_queues_contain_each_key_once_whatever_is_used(size):
    entries: Entries[Any] = Entries(size)
    for number in range(size * 3):
        entries.put(f"k{number % (size + size // 2)}", f"web{number % 3}", 0.0)
        entries.get(f"k{number * 7 % size}", 0.0)
    assert sum(len(age.keys) for age in entries._generations) == entries._queued <= size + size // 1000
    assert len(entries._generations) <= 33


def test_large_table_is_divided_into_shards():
    entries: Entries[Any] = Entries(1_000_000, inf)
    for number in range(3000):
        entries.put(number, "web1", 0.0)
    assert len(entries) == 3000
    assert sum(1 for _ in entries.items(0.0)) == 3000
    assert max(len(shard) for shard in entries._shards) < 100
