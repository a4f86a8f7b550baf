"""Hooks around a fork and at exit: each member gets its turn, whatever the others do."""

import threading

from streamkit.runtime import fork


class Member:
    def __init__(self, error=None):
        self.error = error
        self.calls = []

    def before_fork(self):
        self.calls.append("before")

    def after_fork(self, in_child):
        self.calls.append("after")

    def at_exit(self):
        self.calls.append("exit")
        if self.error is not None:
            raise self.error


def in_another_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_that_fork_at_once_take_turns():
    member = Member()
    fork.watch_fork(member)
    fork._before()
    may_fork = in_another_thread(lambda: fork._forks.acquire(blocking=False))
    fork._after(False)
    in_another_thread(lambda: (fork._before(), fork._after(False)))
    fork.forget(member)

    assert may_fork is False
    assert member.calls == ["before", "after"] * 2


def test_one_that_fails_at_exit_does_not_keep_the_others_from_theirs(monkeypatch):
    members = [Member(error) for error in (None, RuntimeError("broken"), None)]
    monkeypatch.setattr(fork, "_ending", members)
    fork._end()

    assert [member.calls for member in members] == [["exit"]] * 3
