import contextlib
import os
import threading
from pathlib import Path

import pytest

from daskspace import DirectoryError, create_backend, operation
from daskspace.execution.lock import Lock
from daskspace.results.directory import ResultDirectory, opened, reserve, set_aside, unreserve


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def stage(**options):
    """Stage an operation and let go of it again."""
    op = operation([lambda: 1], **options)
    with create_backend("serial") as backend:
        backend.stage_in(op)
    return Path(op.result_directory)


# reserve


def test_a_new_directory_has_the_name_and_the_time_and_lies_in_the_working_directory(tmp_path):
    directory, made = reserve(None, "my-op")
    assert made
    assert directory.path.parent == tmp_path
    assert directory.path.is_dir()
    name, _, stamp = directory.path.name.partition("my-op-")
    assert name == ""
    assert len(stamp) == len("20240131-120000")


def test_operations_of_the_same_second_get_different_directories():
    paths = [reserve(None, "op")[0].path for _ in range(50)]
    assert len(set(paths)) == 50


def test_threads_at_the_same_time_get_different_directories():
    paths = []
    together = threading.Barrier(8, timeout=10)

    def take():
        together.wait()
        paths.extend(reserve(None, "op")[0].path for _ in range(10))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(paths)) == 80


def test_a_given_directory_is_made_with_its_parents(tmp_path):
    directory, made = reserve("a/b/c", "op")
    assert made
    assert directory.path == tmp_path / "a/b/c"
    assert directory.path.is_dir()


def test_a_directory_stays_where_it_is_when_the_working_directory_changes(tmp_path):
    directory, _ = reserve("a", "op")
    os.chdir("/")
    assert directory.path == tmp_path / "a"


@pytest.mark.parametrize("content", [[], ["mine.txt"]])
def test_an_existing_directory_without_an_operation_is_taken_with_what_is_in_it(content):
    Path("mine").mkdir()
    for name in content:
        Path("mine", name).write_text("kept")
    directory, made = reserve(Path("mine"), "op")
    assert not made
    assert os.listdir(directory.path) == content


def test_a_directory_that_holds_an_operation_is_refused():
    directory, _ = reserve("here", "op")
    directory.journal.touch()
    with pytest.raises(DirectoryError, match="here already holds an operation: resume it"):
        reserve("here", "op")


@pytest.mark.parametrize("path", ["file", "file/below", "file/far/below", "dangling", "x" * 300])
def test_what_is_no_directory_and_cannot_become_one_is_refused(path):
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    with pytest.raises(DirectoryError, match=r"result directory .* cannot be used: .+"):
        reserve(path, "op")
    assert sorted(os.listdir()) == ["dangling", "file"]


def test_a_directory_that_may_not_be_written_is_refused():
    Path("locked").mkdir(mode=0o500)
    locked = "locked/below" if os.geteuid() else "/proc/self/below"  # root may write the first
    with pytest.raises(DirectoryError, match=r"Permission denied|No such file"):
        reserve(locked, "op")


def test_a_path_that_no_file_can_have_is_refused():
    with pytest.raises(DirectoryError):
        reserve("a\0b", "op")


def test_a_link_to_a_directory_is_a_directory():
    Path("real").mkdir()
    Path("link").symlink_to("real")
    assert reserve("link", "op")[1] is False


def test_a_new_directory_in_a_working_directory_that_is_gone_is_refused(tmp_path):
    Path("gone").mkdir()
    os.chdir("gone")
    Path(tmp_path, "gone").rmdir()
    with pytest.raises(DirectoryError, match="cannot be used: No such file"):
        reserve(None, "op")


# unreserve


def test_what_was_made_is_removed_again():
    directory, made = reserve(None, "op")
    for file in (directory.operation, directory.environment, directory.log, directory.journal):
        file.touch()
    unreserve(directory, made)
    assert os.listdir() == []


def test_what_was_there_before_stays():
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    directory, made = reserve("mine", "op")
    directory.journal.touch()
    unreserve(directory, made)
    assert os.listdir("mine") == ["notes.txt"]


def test_an_empty_directory_that_was_there_before_stays():
    Path("mine").mkdir()
    unreserve(*reserve("mine", "op"))
    assert Path("mine").is_dir()


def test_a_directory_that_was_made_but_got_other_files_stays_with_them():
    directory, made = reserve("mine", "op")
    (directory.path / "notes.txt").touch()
    unreserve(directory, made)
    assert os.listdir("mine") == ["notes.txt"]


def test_a_directory_can_be_reserved_again_after_it_was_given_back():
    for _ in range(2):
        directory, made = reserve("mine", "op")
        assert made
        unreserve(directory, made)


def test_a_users_own_operation_yaml_survives_staging():
    Path("operation.yaml").write_text("function: mine:f\n")
    with contextlib.suppress(DirectoryError):
        stage(result_directory=".")
    assert Path("operation.yaml").read_text() == "function: mine:f\n"


def test_a_users_own_operation_yaml_survives_giving_back():
    Path("operation.yaml").write_text("function: mine:f\n")
    with contextlib.suppress(DirectoryError):
        unreserve(*reserve(".", "op"))
    assert os.listdir() == ["operation.yaml"]


# opened


def test_a_directory_that_holds_an_operation_can_be_opened():
    path = stage()
    assert opened(path).path == path
    assert opened(str(path)).holds_operation


def test_other_places_are_refused_with_what_to_give():
    Path("empty").mkdir()
    with pytest.raises(DirectoryError, match="empty holds no operation: give the directory that"):
        opened("empty")
    with pytest.raises(DirectoryError, match="missing is no directory: give the directory that"):
        opened("missing")


def test_the_layout_is_the_documented_one():
    directory = ResultDirectory("r")
    files = [directory.operation, directory.environment, directory.journal, directory.log]
    files += [directory.table, directory.parquet]
    for file in files:
        assert file.name in ResultDirectory.__doc__
        assert file.parent == directory.path


# set_aside


def contents(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def ran(directory):
    """Run an operation that leaves all kinds of files, beside one of the user's."""
    Path(directory).mkdir()
    Path(directory, "user.txt").write_text("the user's")
    op = operation(lambda x, directory: print(x), grid={"x": [1]}, result_directory=directory)
    with create_backend("serial") as backend:
        backend.run(op)
    return Path(directory)


def test_the_records_of_an_earlier_operation_make_room_and_can_still_be_read():
    where = ran("here")
    before = contents(where)
    set_aside(where)
    assert {path.name for path in where.iterdir()} == {"user.txt", "earlier-1"}
    assert contents(opened(where / "earlier-1").path) == {
        path: text for path, text in before.items() if path.name != "user.txt"
    }
    set_aside(where)
    assert not (where / "earlier-2").exists()


def test_what_was_set_aside_can_come_back():
    where = ran("here")
    before = contents(where)
    set_aside(where)()
    assert contents(where) == before
    assert not (where / "earlier-1").exists()


def test_an_operation_that_still_runs_is_not_set_aside():
    where = ran("here")
    before = contents(where)
    lock = Lock(where / "journal.lock")
    with pytest.raises(DirectoryError, match="in use by process"):
        set_aside(where)
    lock.release()
    assert contents(where).keys() == before.keys()


def test_without_a_journal_only_what_would_be_overwritten_makes_room():
    where = Path("here")
    where.mkdir()
    for name in ("operation.log", "table.csv"):
        (where / name).touch()
    set_aside(where)
    assert {path.name for path in where.iterdir()} == {"table.csv", "earlier-1"}
    assert {path.name for path in (where / "earlier-1").iterdir()} == {"operation.log"}
