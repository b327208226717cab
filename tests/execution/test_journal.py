"""The record of an operation survives whatever happens to its writer, its disk and its path."""

import errno
import json
import os
import random
import shutil
import subprocess
import zlib

import pytest

from daskspace import DirectoryError
from daskspace.execution.journal import Journal, read_journal
from daskspace.execution.outcome import Outcome
from daskspace.execution.seal import sealed, unsealed


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "journal.jsonl"


@pytest.fixture
def journal(path):
    path.parent.mkdir()
    journal = Journal(path, {"name": "x"})
    yield journal
    journal.close()


def receipt(process):
    return Outcome(process, "done", metrics={"m": process}).to_json()


def processes_of(path):
    return [entry["process"] for _, entry in read_journal(path) if "process" in entry]


def damaged_in(path):
    offsets = []
    for _ in read_journal(path, offsets.append):
        pass
    return offsets


# Seals


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1},
        {"a": "ü\u2028\n\x00", "ä": "}"},
        {"a": {"b": [{"c": {}}], "crc": "x"}, "d": [[]]},
        {"crc": "mine"},
        {"a": '","crc":"00000000"}'},
        {"a": "\udc80"},
    ],
    ids=ascii,
)
@pytest.mark.parametrize("separators", [None, (",", ":")])
def test_a_sealed_line_gives_back_what_it_holds(value, separators):
    line = sealed(json.dumps(value, separators=separators))
    assert unsealed(line.encode()) == value
    assert list(json.loads(line))[-1] == "crc"
    assert {**json.loads(line), "crc": 0} == {**value, "crc": 0}


def test_a_line_that_is_no_ascii_can_be_sealed():
    line = sealed(json.dumps({"ä": "ü"}, ensure_ascii=False))
    assert unsealed(line.encode()) == {"ä": "ü"}


def test_every_byte_that_changes_is_noticed():
    line = receipt(12).encode()
    for place in range(len(line)):
        for byte in range(256):
            changed = line[:place] + bytes([byte]) + line[place + 1 :]
            assert (unsealed(changed) is None) == (changed != line), changed


def test_every_byte_that_is_missing_or_too_much_is_noticed():
    line = receipt(12).encode()
    for place in range(len(line)):
        assert unsealed(line[:place]) is None
        assert unsealed(line[:place] + line[place + 1 :]) is None
        assert unsealed(line[:place] + b" " + line[place:]) is None


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"17", b"null", b"[1]", b'{"a": 1}', b"\x00" * 99, b"\xff" * 99]
)
def test_what_was_never_sealed_is_damaged(line):
    assert unsealed(line) is None


@pytest.mark.parametrize("text", ["", "{}", "17}", "[1]", '{"a"}', '{"a":1}{"b":2}', "[" * 99_999])
def test_what_is_sealed_and_no_object_is_damaged(text):
    assert unsealed(sealed(text).encode()) is None


def test_bytes_that_are_no_text_are_damaged_whatever_their_seal():
    line = b'{"a":"\xff"'
    assert unsealed(line + b',"crc":"%08x"}' % zlib.crc32(line)) is None


# Writing


def test_every_line_is_json_with_a_seal(journal, path):
    journal.append(f"{receipt(0)}\n{receipt(1)}")
    journal.end(why="over")
    lines = path.read_bytes().splitlines()
    header, first, second, end = map(unsealed, lines)
    assert header == {"journal": 2, "session": 1, "name": "x"}
    assert (first["process"], second["process"], end) == (0, 1, {"end": {"why": "over"}})
    assert all(json.loads(line)["crc"] for line in lines)


def test_the_offsets_are_those_of_the_lines(journal, path):
    journal.append(receipt(0))
    content = path.read_bytes()
    for offset, entry in read_journal(path):
        assert unsealed(content[offset:].partition(b"\n")[0]) == entry


def test_a_journal_is_made_once(journal, path):
    with pytest.raises(FileExistsError):
        Journal(path, {})


def test_the_end_can_be_repeated(journal, path):
    journal.end()
    journal.end()
    assert len(path.read_bytes().splitlines()) == 2


def test_sync_and_end_wait_for_the_disk_and_tell_when_it_fails(journal, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    journal.sync()
    assert len(synced) == 1

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        journal.sync()
    with pytest.raises(OSError, match="Input/output"):
        journal.end()
    journal.end()


class FullDisk:
    """A file that takes some bytes, one write after the other, and then no more."""

    def __init__(self, file, room):
        self.file = file
        self.room = room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(data[: min(self.room, 7)])
        self.room -= written
        return written


def test_a_disk_that_is_full_keeps_what_was_written_before_and_after(journal, path):
    for room in range(len(receipt(1)) + 1):
        path.unlink()
        torn = Journal(path, {})
        torn.append(receipt(0))
        file = torn._file
        torn._file = FullDisk(file, room)
        with pytest.raises(OSError, match="No space left"):
            torn.append(receipt(1))
        torn._file = file
        assert processes_of(path) == [0]
        torn.append(receipt(2))
        torn.end()
        assert processes_of(path) in ([0, 2], [0, 1, 2])
        assert len(damaged_in(path)) == (0 < room < len(receipt(1)))


def test_a_real_disk_that_is_full_keeps_what_was_written(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted")
    try:
        journal = Journal(tmp_path / "journal.jsonl", {})
        appended = 0
        with pytest.raises(OSError, match="No space left"):
            while True:
                journal.append(receipt(appended))
                appended += 1
        with pytest.raises(OSError, match="No space left"):
            journal.append(receipt(0))
        journal.close()
        assert processes_of(journal.path) == list(range(appended))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# Reading


def test_every_byte_of_a_journal_may_be_damaged_and_costs_two_lines_at_most(journal, path):
    journal.append("\n".join(map(receipt, range(4))))
    content = path.read_bytes()
    begin = content.index(b"\n") + 1
    chance = random.Random(0)
    for place in range(begin, len(content)):
        changed = bytearray(content)
        changed[place] ^= chance.randrange(1, 256)
        path.write_bytes(changed)
        left = processes_of(path)
        assert set(left) < set(range(4))
        assert len(left) >= 3 - (content[place] == ord("\n"))


def test_a_page_of_zeros_costs_only_the_lines_it_covers(journal, path):
    for process in range(200):
        journal.append(receipt(process))
    content = bytearray(path.read_bytes())
    content[4096:8192] = bytes(4096)
    path.write_bytes(content)
    begin, end = content[:4096].count(b"\n") - 1, content[8192:].count(b"\n") - 1
    assert processes_of(path) == [*range(begin), *range(200 - end, 200)]
    assert begin > 10
    assert end > 10
    assert len(damaged_in(path)) == 1


def test_damaged_lines_are_told_and_a_torn_last_one_is_not(journal, path):
    journal.append(f"{receipt(0)}\n")
    offset = path.stat().st_size
    journal.append("garbage")
    journal.append(receipt(1))
    journal.append('{"a": 1}')
    with path.open("ab") as file:
        file.write(receipt(2).encode())
    assert damaged_in(path) == [offset, offset + len("garbage\n" + receipt(1) + "\n")]
    assert processes_of(path) == [0, 1]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ('{"journal": 3}\n', "format is 3, and this version of daskspace reads 2: upgrade"),
        ('{"journal": 3, "crc":"01234567"}\n', "format is 3, .*: upgrade"),
        (sealed('{"journal": 3}') + "\n", "format is 3, .*: upgrade"),
        ('{"journal": 1, "name": "x"}\n', "format is 1, .* the version that wrote it"),
        ('{"journal": 2}\n', "no header that can be read: its first line is damaged"),
        ('{"journal": "new"}\n', "its first line is damaged"),
        ('{"journal": true}\n', "its first line is damaged"),
        ("[" * 99_999 + "\n", "its first line is damaged"),
        ("[1]\n", "its first line is damaged"),
        ("\n", "its first line is damaged"),
        (sealed('{"process": 1}') + "\n", "its first line is damaged"),
        (sealed('{"journal": 2}'), "no header: its writer was killed, or the disk full"),
        ("", "no header: its writer was killed, or the disk full"),
    ],
)
def test_a_journal_that_cannot_be_read_says_why_and_is_not_resumed(tmp_path, header, words):
    path = tmp_path / "journal.jsonl"
    path.write_text(header)
    with pytest.raises(DirectoryError, match=words):
        list(read_journal(path))
    with pytest.raises(DirectoryError, match=words):
        Journal.resume(path, {})
    assert path.read_text() == header


def test_a_journal_that_is_missing_is_not_made_by_resume(path):
    with pytest.raises(DirectoryError, match="No such file"):
        Journal.resume(path, {})
    assert not path.exists()


# Sessions


def test_each_session_has_its_number_and_its_header(journal, path):
    journal.append(receipt(0))
    journal.end()
    for number in (2, 3):
        resumed = Journal.resume(path, {"name": f"session {number}"})
        assert resumed.session == number
        resumed.append(receipt(number))
        resumed.end(number=number)
    headers = [entry for _, entry in read_journal(path) if "journal" in entry]
    assert [header["session"] for header in headers] == [1, 2, 3]
    assert [header["name"] for header in headers] == ["x", "session 2", "session 3"]
    assert processes_of(path) == [0, 2, 3]
    assert journal.session == 1


def test_a_journal_torn_at_any_byte_is_resumed_and_loses_no_whole_line(journal, path):
    for process in range(4):
        journal.append(receipt(process))
    journal.end()
    content = path.read_bytes()
    begin = content.index(receipt(2).encode())
    for length in range(begin, len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        resumed = Journal.resume(path, {})
        resumed.append(receipt(4))
        resumed.end()
        entries = [entry for _, entry in read_journal(path)]
        assert entries[:whole] == [unsealed(line) for line in content.splitlines()[:whole]]
        assert [next(iter(entry)) for entry in entries[whole:]] == ["journal", "process", "end"]
        assert damaged_in(path) == []


def test_a_last_line_that_is_whole_and_damaged_is_left_by_resume(journal, path):
    journal.append(receipt(0))
    journal.append("garbage")
    before = path.read_bytes()
    resumed = Journal.resume(path, {})
    resumed.append(receipt(1))
    resumed.close()
    assert path.read_bytes().startswith(before)
    assert processes_of(path) == [0, 1]


# Removed while it is open


def test_a_journal_knows_whether_it_is_in_place(journal, path):
    assert journal.is_in_place()
    content = path.read_bytes()
    path.unlink()
    assert not journal.is_in_place()
    path.write_bytes(content)
    assert not journal.is_in_place()
    shutil.rmtree(path.parent)
    assert not journal.is_in_place()


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("remove", [os.unlink, lambda path: shutil.rmtree(path.parent)])
def test_a_journal_that_was_removed_is_rescued_and_goes_on(journal, path, remove, resumed):
    if resumed:
        journal.close()
        journal = Journal.resume(path, {})
    journal.append(f"{receipt(0)}\n{'x' * 3_000_000}\n{receipt(1)}")
    content = path.read_bytes()
    remove(path)
    journal.rescue()
    assert path.read_bytes() == content
    assert journal.is_in_place()
    journal.append(receipt(2))
    journal.end()
    assert processes_of(path) == [0, 1, 2]


def test_rescue_leaves_a_journal_alone_that_is_in_place(journal, path):
    before = path.stat().st_ino
    journal.rescue()
    journal.append(receipt(0))
    assert path.stat().st_ino == before
    assert processes_of(path) == [0]


def test_rescue_leaves_another_file_in_the_journals_place_alone(journal, path):
    path.unlink()
    path.write_text("another")
    journal.rescue()
    assert path.read_text() == "another"
    journal.append(receipt(0))
