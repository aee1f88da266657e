"""Ranks agree on a name of their own, whatever the dead have left in the store."""

import threading

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from equilm.train.meeting import agree


def meet(port: int, size: int, found: list[str]) -> list[threading.Thread]:
    def come(rank: int) -> None:
        found.append(agree(TCPStore("127.0.0.1", port, is_master=False), rank, size))

    threads = [threading.Thread(target=come, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    return threads


def test_every_attempt_has_one_name_of_its_own() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = set()
    for attempt in range(1, 5):
        found: list[str] = []
        for thread in meet(store.port, 3, found):
            thread.join(timeout=20)
            assert not thread.is_alive()
        assert len(found) == 3 and len(set(found)) == 1
        names |= set(found)
        assert len(names) == attempt


def test_words_of_an_attempt_that_died_while_meeting_are_agreed_to_by_nobody() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("word/0", "dead0")
    store.set("word/2", "dead2")
    store.set("proposal", "dead0 dead1 dead2")
    early: list[str] = []

    def come(rank: int) -> None:
        early.append(agree(TCPStore("127.0.0.1", store.port, is_master=False), rank, 3))

    threads = [threading.Thread(target=come, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    threads[0].join(timeout=0.5)
    assert early == []  # rank 2 has not come; only its dead one has
    threads.append(threading.Thread(target=come, args=(2,), daemon=True))
    threads[-1].start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(early) == 3 and len(set(early)) == 1
