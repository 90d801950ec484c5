"""ChangeLock: callbacks wait until the thread that holds it releases it."""

import threading

from sticky_core.backend.change_lock import ChangeLock


def test_callback_is_called_at_once_without_the_lock():
    called: list[str] = []
    ChangeLock().call_after_release(lambda: called.append("now"))
    assert called == ["now"]


def test_callback_is_called_when_the_outermost_block_is_left():
    lock, called = ChangeLock(), list[str]()
    with lock:
        with lock:
            lock.call_after_release(lambda: called.append("first"))
            lock.call_after_release(lambda: called.append("second"))
        assert called == []
    assert called == ["first", "second"]


def test_callback_of_a_thread_that_does_not_hold_the_lock_is_called_at_once():
    lock, called = ChangeLock(), list[str]()
    with lock:
        thread = threading.Thread(target=lambda: lock.call_after_release(lambda: called.append("other")))
        thread.start()
        thread.join()
        assert called == ["other"]


def test_after_fork_it_is_free_and_has_no_callbacks():
    lock, called = ChangeLock(), list[str]()
    lock.__enter__()
    lock.call_after_release(lambda: called.append("the parent's"))
    lock.after_fork()
    with lock:
        pass
    assert called == []


def test_block_that_was_entered_before_a_fork_is_left_in_the_child():
    lock, called = ChangeLock(), list[str]()
    with lock, lock:
        lock.after_fork()
        with lock:
            lock.call_after_release(lambda: called.append("the child's"))
        assert called == ["the child's"]
    lock.call_after_release(lambda: called.append("now"))
    assert called == ["the child's", "now"]
