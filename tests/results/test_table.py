import csv
import datetime
import itertools
import json
import math
import random

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from daskspace import DirectoryError, create_backend, operation
from daskspace.execution.journal import Journal
from daskspace.execution.outcome import Outcome
from daskspace.execution.seal import sealed
from daskspace.results.table import OWN_COLUMNS, Table


@pytest.fixture
def table_of(tmp_path):
    """Return a function that makes a table from outcomes, as they arrived."""
    numbers = itertools.count()

    def table_of(*outcomes, parameters=()):
        journal = Journal(tmp_path / f"{next(numbers)}.jsonl", {"parameters": list(parameters)})
        for outcome in outcomes:
            journal.append(outcome.to_json())
        journal.end()
        return Table(journal.path)

    return table_of


@pytest.fixture
def csv_of(tmp_path):
    """Return a function that gives the rows that a program reads from the table's CSV."""

    def csv_of(table):
        table.write(tmp_path / "table.csv", tmp_path / "table.parquet")
        with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return csv_of


@pytest.fixture
def parquet_of(tmp_path):
    """Return a function that gives the table's Parquet file, as pyarrow reads it."""

    def parquet_of(table):
        table.write(tmp_path / "table.csv", tmp_path / "table.parquet")
        return pyarrow.parquet.read_table(tmp_path / "table.parquet")

    return parquet_of


def done(process, /, metrics=None, **parameters):
    return Outcome(process, "done", parameters=parameters, run=0, metrics=metrics or {})


def measured(*values):
    """Return one outcome for each value of the metric `m`; None is no metric at all."""
    return [done(n, {} if value is None else {"m": value}) for n, value in enumerate(values)]


# Rows


def test_rows_are_typed_and_in_process_order(table_of):
    values = [1, 2.5, True, "text", None, [1, {"a": 2}], {"b": None}]
    outcomes = [done(n, {"m": value}, p=value) for n, value in enumerate(values)]
    rows = list(table_of(*reversed(outcomes)).rows())
    assert [row["process"] for row in rows] == list(range(7))
    for column in ("m", "p"):
        assert [row[column] for row in rows] == values
        assert [type(row[column]) for row in rows] == [type(value) for value in values]


def test_a_row_has_every_column_in_their_order_and_none_where_there_is_nothing(table_of):
    table = table_of(done(0, {"m": 1}, a=1), Outcome(1, "lost", message="gone"))
    for row in table.rows():
        assert list(row) == table.columns
    assert list(table.rows())[1] == dict.fromkeys(table.columns) | {
        "process": 1,
        "state": "lost",
        "message": "gone",
    }


def test_start_is_a_time_in_utc(table_of):
    (row,) = table_of(Outcome(0, "done", start=0.5)).rows()
    assert row["start"] == datetime.datetime(1970, 1, 1, 0, 0, 0, 500_000, datetime.UTC)


def test_the_first_outcome_of_a_process_counts(table_of):
    table = table_of(done(1, {"m": 1}), done(0), Outcome(1, "lost", metrics={"late": 2}))
    assert [row["state"] for row in table.rows()] == ["done", "done"]
    assert table.counts == {"done": 2}
    assert len(table) == 2
    assert "late" not in table.columns


def test_one_outcome_can_be_asked_for(table_of):
    table = table_of(done(2, {"m": 1}), done(0))
    assert table.outcome(2) == done(2, {"m": 1})
    assert [table.outcome(n) for n in (-1, 1, 3)] == [None, None, None]
    assert list(table.outcomes()) == [done(0), done(2, {"m": 1})]


def test_no_processes_give_an_empty_table(table_of, csv_of, parquet_of):
    table = table_of(parameters=["p"])
    assert (len(table), table.counts, list(table.rows())) == (0, {}, [])
    assert table.columns == ["process", "p", *OWN_COLUMNS[1:]]
    assert csv_of(table) == []
    assert parquet_of(table).num_rows == 0
    assert table.frame().shape == (0, 11)


# Columns


def test_parameters_metrics_and_our_own_stand_in_their_places(table_of):
    table = table_of(done(0, {"m": 1}, b=1, a=2), parameters=["b", "a"])
    expected = "process b a data run state m start duration host peak_memory error message"
    assert table.columns == expected.split()


def test_the_columns_do_not_depend_on_the_order_of_arrival(table_of):
    outcomes = [
        Outcome(0, "failed", error="E"),
        done(1, {"b": 1, "a": 2}, q=1),
        done(2, {"c": 1, "a": 2}, p=1, q=2),
        done(3, {"a": 1, "d": 2}, r=1),
    ]
    expected = table_of(*outcomes)
    middle = expected.columns[1:-6]
    assert middle == ["q", "p", "r", "data", "run", "state", "b", "a", "c", "d"]
    rows = list(expected.rows())
    for _ in range(10):
        random.Random(0).shuffle(outcomes)
        table = table_of(*outcomes)
        assert table.columns == expected.columns
        assert list(table.rows()) == rows


def test_declared_parameters_come_first_in_their_order_even_without_values(table_of):
    table = table_of(done(0, x=1, b=2), parameters=["a", "b"])
    assert table.columns[1:4] == ["a", "b", "x"]


@pytest.mark.parametrize("name", ["p", *OWN_COLUMNS])
def test_a_metric_named_like_another_column_gets_a_prefix(table_of, csv_of, name):
    table = table_of(done(0, {name: "metric"}, p="parameter"))
    (row,) = table.rows()
    assert row[f"metric.{name}"] == "metric"
    assert (row["p"], row["process"], row["state"]) == ("parameter", 0, "done")
    assert csv_of(table)[0][f"metric.{name}"] == "metric"


@pytest.mark.parametrize("parameters", [{"p": 0}, {"p": 0, "metric.p": 3}])
def test_every_column_has_a_name_of_its_own(table_of, parameters):
    table = table_of(done(0, {"p": 1, "metric.p": 2}, **parameters))
    assert len(set(table.columns)) == len(table.columns)
    values = [value for value in next(iter(table.rows())).values() if value in (1, 2, 3)]
    assert sorted(values) == sorted({1, 2, *parameters.values()} - {0})


def test_parameters_named_data_and_run_take_the_place_of_ours(table_of):
    table = table_of(
        Outcome(0, "done", parameters={"run": "mine", "data": 7}, run=0),
        parameters=["run", "data"],
    )
    (row,) = table.rows()
    assert (row["run"], row["data"]) == ("mine", 7)
    assert table.columns[:4] == ["process", "run", "data", "state"]


# CSV


def test_csv_has_empty_cells_for_nothing_json_for_lists_and_plain_numbers(table_of, csv_of):
    values = [None, 0.1, 3, True, [1, "a"], {"a": None}, math.inf, math.nan]
    cells = [row["m"] for row in csv_of(table_of(*measured(*values)))]
    assert cells == ["", "0.1", "3", "True", '[1,"a"]', '{"a":null}', "inf", "nan"]


def test_csv_has_a_time_in_iso_8601(table_of, csv_of):
    (row,) = csv_of(table_of(Outcome(0, "done", start=1.5)))
    assert row["start"] == "1970-01-01T00:00:01.500Z"


@pytest.mark.parametrize(
    "text",
    [
        *["a,b", 'say "hi"', "a\nb", "a\r\nb", "a\rb", "\r", " a ", "'", "a;b", "a\tb"],
        *["ü", "\u2028", "#1", "=1+1", "\ufeff"],
    ],
    ids=ascii,
)
def test_any_text_can_be_read_from_the_csv_as_it_was(table_of, csv_of, tmp_path, text):
    table = table_of(*measured(text, "next"))
    assert [row["m"] for row in csv_of(table)] == [text, "next"]
    assert pd.read_csv(tmp_path / "table.csv")["m"].tolist() == [text, "next"]


def test_a_lone_surrogate_is_escaped(table_of, csv_of, parquet_of):
    table = table_of(*measured("a\udc80", 1))
    assert [row["m"] for row in csv_of(table)] == ["a\\udc80", "1"]
    assert parquet_of(table)["m"].to_pylist() == ["a\\udc80", "1"]


def test_a_table_is_replaced_as_a_whole_and_nothing_else_is_left(table_of, csv_of, tmp_path):
    csv_of(table_of(*measured(1, 2)))
    assert len(csv_of(table_of(*measured(1)))) == 1
    assert list(tmp_path.glob("*.part")) == list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("missing", ["csv", "parquet"])
def test_a_table_that_cannot_be_written_leaves_the_old_one(table_of, tmp_path, missing):
    paths = [tmp_path / "table.csv", tmp_path / "table.parquet"]
    table_of(*measured("old")).write(*paths)
    before = {path: path.read_bytes() for path in paths}
    elsewhere = [tmp_path / "missing/x" if missing in path.name else path for path in paths]
    with pytest.raises(OSError):
        table_of(*measured("new")).write(*elsewhere)
    assert {path: path.read_bytes() for path in paths} == before
    assert list(tmp_path.glob(".*")) == []


# Parquet


@pytest.mark.parametrize(
    ("values", "kind", "read"),
    [
        ([1, 2**62 + 1, None], "int64", [1, 2**62 + 1, None]),
        ([2**63 - 1, -(2**63)], "int64", [2**63 - 1, -(2**63)]),
        ([1, 0.5, None], "double", [1.0, 0.5, None]),
        ([True, None, False], "bool", [True, None, False]),
        (["a", None], "string", ["a", None]),
        ([1, "a", None, 2.5], "string", ["1", "a", None, "2.5"]),
        ([1, True], "string", ["1", "True"]),
        ([[1], {"a": 2}], "string", ["[1]", '{"a":2}']),
        ([1, 2**63], "string", ["1", str(2**63)]),
        ([2**100, 0.5], "string", [str(2**100), "0.5"]),
    ],
    ids=repr,
)
def test_a_parquet_column_has_the_type_of_its_values(table_of, parquet_of, values, kind, read):
    parquet = parquet_of(table_of(*measured(*values)))
    assert str(parquet.schema.field("m").type) == kind
    assert parquet["m"].to_pylist() == read


def test_parquet_has_our_columns_with_their_types(table_of, parquet_of):
    schema = parquet_of(table_of(Outcome(0, "done", run=1, start=1.5, duration=0.5))).schema
    assert {name: str(schema.field(name).type) for name in OWN_COLUMNS} == {
        **dict.fromkeys(OWN_COLUMNS, "string"),
        **dict.fromkeys(["process", "run", "peak_memory"], "int64"),
        "duration": "double",
        "start": "timestamp[ms, tz=UTC]",
    }


def test_parquet_keeps_what_is_not_finite(table_of, parquet_of):
    read = parquet_of(table_of(*measured(math.inf, math.nan)))["m"].to_pylist()
    assert read[0] == math.inf
    assert math.isnan(read[1])


def test_a_parquet_file_may_have_several_chunks(table_of, parquet_of):
    table = table_of(*[done(n, {"m": n}) for n in range(10_001)])
    assert parquet_of(table)["m"].to_pylist() == list(range(10_001))


# pandas


def test_a_frame_has_whole_numbers_that_stay_so_where_some_are_missing(table_of):
    frame = table_of(done(0, {"m": 1}, p=1), Outcome(1, "failed")).frame()
    for column in ("process", "run", "peak_memory", "m", "p"):
        assert frame[column].dtype == "Int64"
    assert frame["m"][0] == 1
    assert frame["m"][1] is pd.NA


@pytest.mark.parametrize("large", [2**53 + 1, 2**62 + 1, 2**63 - 1, -(2**63)])
def test_a_frame_keeps_large_whole_numbers_where_some_are_missing(table_of, large):
    assert table_of(*measured(large, None)).frame()["m"][0] == large


def test_a_frame_has_the_other_types_of_pandas(table_of):
    frame = table_of(
        Outcome(0, "done", start=1.5, duration=0.5, metrics={"f": 0.5, "b": True, "t": "x"}),
        Outcome(1, "done", start=2.5, duration=1.5, metrics={"f": 1, "b": False, "t": "y"}),
    ).frame()
    assert frame["start"].dtype.tz is not None
    assert frame["start"][0] == pd.Timestamp(1.5, unit="s", tz="UTC")
    assert [frame[c].dtype for c in ("f", "duration", "b")] == [float, float, bool]
    assert frame["t"].tolist() == ["x", "y"]


def test_a_frame_of_processes_that_never_began_has_no_times(table_of):
    frame = table_of(Outcome(0, "cancelled")).frame()
    assert frame["start"].isna().all()
    assert frame["start"].dtype.tz is not None


def test_a_frame_may_hold_integers_of_any_size(table_of):
    assert table_of(*measured(2**100, 1)).frame()["m"].tolist() == [2**100, 1]


# The journal


def line(text):
    return sealed(text) + "\n"


HEADER = line('{"journal": 2, "session": 1}')


@pytest.fixture
def journal(tmp_path):
    def journal(*lines, header=HEADER):
        path = tmp_path / "journal.jsonl"
        path.write_bytes(b"".join([header.encode(), *lines]))
        return path

    return journal


GOOD = (done(0, {"m": 1}).to_json() + "\n").encode()
OTHER = (done(1, {"m": 1}).to_json() + "\n").encode()


def test_a_torn_last_line_is_passed_over(journal):
    for end in range(1, len(GOOD)):
        table = Table(journal(GOOD, OTHER[: end - 1]))
        assert [row["process"] for row in table.rows()] == [0]


@pytest.mark.parametrize(
    "garbage",
    [b"", b"garbage", b"\xff\xfe", b"\x00" * 4096, b"17", b"null", b"[1]", b'"a"', b"{}", b'{"a"'],
)
def test_lines_that_are_no_outcome_are_passed_over(journal, garbage):
    table = Table(journal(garbage + b"\n", GOOD, garbage + b"\n"))
    assert [row["m"] for row in table.rows()] == [1]


def test_an_entry_without_its_process_is_passed_over(journal):
    assert len(Table(journal(line('{"state": "done"}').encode(), GOOD))) == 1


def test_a_line_that_is_nested_too_deeply_is_passed_over(journal):
    assert len(Table(journal(b"[" * 100_000 + b"\n", GOOD))) == 1


def test_lines_of_other_kinds_and_fields_of_later_versions_are_passed_over(journal):
    later = line('{"process": 1, "state": "done", "colour": "red"}').encode()
    table = Table(journal(line('{"note": "later"}').encode(), GOOD, later))
    assert [row["process"] for row in table.rows()] == [0, 1]
    assert "colour" not in table.columns


def test_the_header_and_the_end_can_be_had(journal):
    end = line('{"end": {"aborted": "why"}}').encode()
    path = journal(end, header=line('{"journal": 2, "name": "x"}'))
    table = Table(path)
    assert table.header["name"] == "x"
    assert table.end == {"aborted": "why"}
    assert Table(journal()).end is None


def test_an_outcome_that_was_changed_is_passed_over(journal):
    changed = GOOD.replace(b'"m":1', b'"m":7')
    assert [row["m"] for row in Table(journal(changed, GOOD)).rows()] == [1]


@pytest.mark.parametrize(
    ("header", "advice"),
    [
        (line('{"journal": 3}'), "upgrade"),
        ('{"journal": 3}\n', "upgrade"),
        ('{"journal": 1}\n', "read it with the version that wrote it"),
    ],
)
def test_a_journal_of_another_format_is_refused(journal, header, advice):
    with pytest.raises(DirectoryError, match=rf"format is [13], .*reads 2: {advice}"):
        Table(journal(GOOD, header=header))


def test_a_journal_without_outcomes_is_an_empty_table(journal):
    assert list(Table(journal()).rows()) == []


@pytest.mark.parametrize(
    "header",
    ["", HEADER[:20], HEADER[:-1], "garbage\n", line('{"process": 0}'), '{"journal": 2}\n'],
)
def test_a_journal_without_a_header_is_refused(journal, header):
    with pytest.raises(DirectoryError, match="has no header"):
        Table(journal(header=header))


def test_a_journal_that_is_missing_or_no_file_is_told(tmp_path):
    with pytest.raises(DirectoryError, match="holds no operation that can be read: No such file"):
        Table(tmp_path / "journal.jsonl")
    with pytest.raises(DirectoryError, match="Is a directory"):
        Table(tmp_path)


def test_a_journal_that_grows_leaves_an_older_table_as_it_was(journal):
    path = journal(GOOD)
    table = Table(path)
    with path.open("ab") as file:
        file.write(OTHER)
    assert len(list(table.rows())) == 1
    assert len(list(Table(path).rows())) == 2


# Sessions


@pytest.fixture
def sessions_of(tmp_path):
    """Return a function that makes a table from lists of outcomes, one list a session."""
    path = tmp_path / "sessions.jsonl"

    def sessions_of(*sessions, parameters=(), ended=True):
        path.unlink(missing_ok=True)
        for number, outcomes in enumerate(sessions):
            begin = Journal if number == 0 else Journal.resume
            declared = parameters[number] if parameters else []
            journal = begin(path, {"parameters": declared, "number": number})
            for outcome in outcomes:
                journal.append(outcome.to_json())
            if ended or number < len(sessions) - 1:
                journal.end(number=number)
            journal.close()
        return Table(path)

    return sessions_of


LOST = Outcome(0, "lost")
WAITING = Outcome(0, "waiting", parameters={"p": 1})


def test_an_outcome_of_a_later_session_takes_the_place_of_an_earlier_one(sessions_of):
    table = sessions_of([LOST, done(1)], [done(0, {"m": 1})], [Outcome(1, "failed")])
    assert [row["state"] for row in table.rows()] == ["done", "failed"]
    assert table.outcome(0) == done(0, {"m": 1})
    assert table.counts == {"done": 1, "failed": 1}
    assert len(table) == 2


def test_within_each_session_the_first_outcome_counts(sessions_of):
    table = sessions_of([LOST], [Outcome(0, "crashed"), done(0)])
    assert table.counts == {"crashed": 1}
    assert table.outcome(0).state == "crashed"


@pytest.mark.parametrize("sessions", [[[WAITING, done(0)]], [[WAITING], [done(0)]]])
def test_a_process_that_waits_gives_its_place_to_any_later_outcome(sessions_of, sessions):
    table = sessions_of(*sessions)
    assert table.outcome(0) == done(0)
    assert table.counts == {"done": 1}


def test_a_process_may_wait_more_than_once(sessions_of):
    assert sessions_of([WAITING, WAITING, LOST, done(0)]).counts == {"lost": 1}
    table = sessions_of([LOST], [WAITING])
    assert (table.counts, len(table)) == ({"waiting": 1}, 1)


def test_a_process_that_waits_takes_back_what_it_came_to_before(sessions_of):
    assert sessions_of([done(0), WAITING]).counts == {"waiting": 1}
    assert sessions_of([LOST, WAITING, done(0)]).counts == {"done": 1}


def test_the_header_and_the_end_are_those_of_the_last_session(sessions_of):
    table = sessions_of([], [], [])
    assert (table.sessions, table.header["session"], table.header["number"]) == (3, 3, 2)
    assert table.end == {"number": 2}
    table = sessions_of([], [], ended=False)
    assert (table.sessions, table.header["number"], table.end) == (2, 1, None)


def test_the_parameters_are_those_of_all_sessions(sessions_of):
    table = sessions_of([done(0, x=1)], [done(1, c=2)], parameters=[["b", "a"], ["c", "b"]])
    assert table.columns[1:5] == ["b", "a", "c", "x"]


def test_a_metric_that_only_a_replaced_outcome_had_is_an_empty_column(sessions_of, csv_of):
    table = sessions_of([done(0, {"old": 1})], [done(0, {"new": 2})])
    (row,) = csv_of(table)
    assert (row["old"], row["new"]) == ("", "2")


def test_counts_are_those_of_the_rows_whatever_was_replaced(sessions_of):
    chance = random.Random(0)
    states = ["done", "lost", "failed", "waiting"]
    for _ in range(20):
        sessions = [
            [Outcome(chance.randrange(8), chance.choice(states)) for _ in range(10)]
            for _ in range(4)
        ]
        table = sessions_of(*sessions)
        rows = [row["state"] for row in table.rows()]
        assert table.counts == {state: rows.count(state) for state in set(rows)}
        assert len(table) == len(rows)


# Through a backend


def test_csv_and_parquet_and_frame_tell_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with create_backend("serial") as backend:
        op = backend.run(operation(lambda x: {"y": x / 2}, grid={"x": range(5)}, runs=2))
    frame = op.table()
    assert frame["y"].tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 2.0, 2.0]
    for read in (
        pd.read_csv(f"{op.result_directory}/table.csv"),
        pd.read_parquet(f"{op.result_directory}/table.parquet"),
    ):
        assert read.columns.tolist() == frame.columns.tolist()
        for column in ("process", "x", "run", "state", "y"):
            assert read[column].tolist() == frame[column].tolist()


def test_an_operation_that_was_not_run_says_what_to_do():
    op = operation(print, settings=[{}])
    for ask in (op.rows, op.table):
        with pytest.raises(DirectoryError, match="run it first"):
            ask()


def test_the_journal_is_json_lines_that_anyone_can_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with create_backend("serial") as backend:
        op = backend.run(operation([lambda: 1]))
    with open(f"{op.result_directory}/journal.jsonl", encoding="ascii") as file:
        header, outcome, end = map(json.loads, file)
    assert (header["journal"], header["session"]) == (2, 1)
    assert (outcome["process"], outcome["metrics"]) == (0, {"value": 1})
    assert end["end"]["aborted"] is None
