from equilm.record import Record
from equilm.report.mixer_table import mixers_table


def accuracy(model: str, part: str, value: float, **about: object) -> Record:
    name = "accuracy_last10" if part == "tracking" else "accuracy"
    told = {"length": 48, "task": "word_problem S3", **about}
    return Record(name=name, value=value, unit="share", model=model, part=part, **told)  # type: ignore[arg-type]


RECORDS = [
    *(accuracy("s6", "recall", value, seed=seed) for seed, value in enumerate((0.2, 0.9, 0.5))),
    accuracy("s6", "recall", 1.0, length=24, seed=0),
    accuracy("s6-implicit", "tracking", 1.0),
    accuracy("gru", "tracking", 0.25),
    accuracy("gru-implicit", "tracking", 0.5, length=12),
    Record(name="failed", value=1.0, unit="1", model="gru", part="mixers-recall", task="Oh: no"),
    Record(name="state_bytes", value=4096.0, unit="bytes", model="s6", part="pace", length=64),
]


def test_explicit_and_implicit_side_by_side() -> None:
    table = mixers_table(RECORDS)
    assert table is not None
    assert table.title == "Every mixer, explicit / implicit, medians of 1 to 3 seeds"
    assert table.header == ("mixer", "S3 48", "MQAR 48", "state after 64 tokens, bytes")
    assert table.rows == (
        ("s6", "— / 100.0%", "50.0% / —", "4,096 / —"),
        ("gru", "25.0% / 50.0% at 12", "Oh / —", "— / —"),
    )


def test_the_title_tells_how_many_seeds_there_are() -> None:
    told = [table.title for few in (RECORDS[:1], RECORDS[:3]) if (table := mixers_table(few))]
    assert [title.rpartition(", ")[2] for title in told] == ["one seed", "medians of 3 seeds"]


def test_no_records_no_table() -> None:
    assert mixers_table([]) is None
