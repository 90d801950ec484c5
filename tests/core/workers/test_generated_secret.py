"""The secret that workers generate: one for all, and the older one if a cleaned directory has led to two."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sticky_core.workers.generated_secret import read_secret, restore_secret, shared_secret

OLDER = "018c1a2b3c400000." + "o" * 43
NEWER = "018c1a2b3c500000." + "n" * 43


def test_first_worker_generates_it_and_the_others_read_it(tmp_path):
    first = shared_secret(tmp_path, "018c1a2b3c400000")
    assert first.startswith("018c1a2b3c400000.") and len(first) > 32
    # an older worker that looks for the first time is not signed up to anything yet
    assert [shared_secret(tmp_path, each) for each in ("018c1a2b3c300000", "018c1a2b3c500000")] == [first, first]
    assert os.listdir(tmp_path) == ["secret"]
    assert os.stat(tmp_path / "secret").st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "found, mine, counts",
    [
        pytest.param(None, NEWER, NEWER, id="it was removed"),
        pytest.param(NEWER, NEWER, NEWER, id="it is there"),
        pytest.param(OLDER, NEWER, OLDER, id="another worker has restored an older one"),
        pytest.param(NEWER, OLDER, OLDER, id="a worker has generated a second one in a cleaned directory"),
        pytest.param("", OLDER, OLDER, id="it was emptied"),
        pytest.param(OLDER[:30], NEWER, NEWER, id="it was cut short"),
        pytest.param("\xff", NEWER, NEWER, id="it was overwritten"),
    ],
)
def test_older_secret_counts_and_is_written_back(tmp_path, found, mine, counts):
    if found is not None:
        (tmp_path / "secret").write_bytes(found.encode("latin-1"))
    assert restore_secret(tmp_path, mine) == counts
    assert read_secret(tmp_path) == counts
    assert os.listdir(tmp_path) == ["secret"]


def test_what_is_no_secret_is_replaced_by_a_new_one(tmp_path):
    (tmp_path / "secret").write_text("short")
    assert shared_secret(tmp_path, "018c1a2b3c400000") == read_secret(tmp_path)


def test_secret_that_appears_meanwhile_counts(tmp_path, monkeypatch):
    link = os.link

    def appear(source, target):
        (tmp_path / "secret").write_text(OLDER)
        monkeypatch.setattr(os, "link", link)
        link(source, target)

    monkeypatch.setattr(os, "link", appear)
    assert shared_secret(tmp_path, "018c1a2b3c500000") == OLDER
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.parametrize("left", [None, "no secret"], ids=["new", "instead of what is no secret"])
def test_workers_that_start_at_once_have_one_secret(tmp_path, left):
    for attempt in range(100):
        directory = tmp_path / f"{attempt}"
        directory.mkdir()
        if left is not None:
            (directory / "secret").write_text(left)
        start = threading.Barrier(8)

        def generate(number, directory=directory, start=start):
            start.wait()
            return shared_secret(directory, f"{number:016x}")

        with ThreadPoolExecutor(8) as workers:
            assert {*workers.map(generate, range(8))} == {read_secret(directory)}
