"""`equilm` whose second process kills itself in the middle of a step, the first time it is run."""

import os
import signal

from equilm.cli import main
from equilm.train.trainer import Trainer

STEP = 7
descend = Trainer._descend


def _descend(self: Trainer) -> tuple[float, float]:
    first_time = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_time and self.position.step == STEP and self.ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return descend(self)


if __name__ == "__main__":
    Trainer._descend = _descend  # type: ignore[method-assign]
    main()
