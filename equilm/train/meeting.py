"""Where the ranks of one attempt meet: a store in which no key of a dead attempt is found.

torchrun keeps its store from attempt to attempt, and counts restarts by node, so that neither a
fresh store nor a common number is to be had. Ranks agree on a name instead. Read `parallel.py`.
"""

import hashlib
import time
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

PAUSE = 0.02  # seconds between two looks


def agree(store: "Store", rank: int, size: int) -> str:
    """Return a name that all ranks of this attempt return, and no others ever did.

    Every rank says a word of its own. Rank 0 proposes the words it finds, until all whose word is
    in the proposal have agreed to it: a word left by the dead is agreed to by nobody.

    Args:
        store: Which all ranks see, whatever else is in it.
        rank: Of this process.
        size: Ranks in all.
    """
    word = uuid.uuid4().hex
    store.set(f"word/{rank}", word)
    while True:
        if rank == 0:
            words = [store.get(f"word/{other}").decode() for other in range(size)]
            store.set("proposal", " ".join(words))
        proposal = store.get("proposal").decode()
        name = hashlib.sha256(proposal.encode()).hexdigest()[:16]
        words = proposal.split()
        if len(words) == size and words[rank] == word:
            store.set(f"{name}/{rank}", "")
            if store.check([f"{name}/{other}" for other in range(size)]):
                return name
        time.sleep(PAUSE)
