"""A minute of many clients; `python -m tests.decode.soak --minutes 10` takes longer."""

import pytest

from tests.decode.soak import soak


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.timeout(300)
def test_a_minute_of_many_clients() -> None:
    report = soak(minutes=1, clients=64, cases=60)
    assert report.wrong == []
    assert report.told["tokens compared"] > 100
