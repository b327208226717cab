import math
from pathlib import Path

import pytest

from daskspace.errors import SpecError
from daskspace.operations.yaml_file import read_yaml

SPEC = """\
# a comment
name: demo

grid:
  C: logspace(-3, 3, 7)
  kernel: [rbf,
           linear]
settings:
  - a: 1
    b: 2
  - a: 3
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(text):
        Path("grid.yaml").write_text(text, encoding="utf-8")
        return read_yaml(Path("grid.yaml"))

    return read


def test_that_the_values_are_plain(read):
    assert read(SPEC).values == {
        "name": "demo",
        "grid": {"C": "logspace(-3, 3, 7)", "kernel": ["rbf", "linear"]},
        "settings": [{"a": 1, "b": 2}, {"a": 3}],
    }


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ((), 1),
        (("name",), 2),
        (("grid",), 4),
        (("grid", "C"), 5),
        (("grid", "kernel"), 6),
        (("grid", "kernel", 0), 6),
        (("grid", "kernel", 1), 7),
        (("settings", 0), 9),
        (("settings", 0, "b"), 10),
        (("settings", 1, "a"), 11),
        (("settings", 1, "c"), 11),
        (("settings", 7), 8),
        (("grid", "unknown", "deeper"), 4),
        (("name", "deeper"), 2),
        (("unknown",), 1),
    ],
)
def test_that_every_key_has_its_line_or_that_of_its_parent(read, keys, line):
    assert read(SPEC).line(*keys) == line


def test_that_an_error_begins_with_the_file_as_given_and_the_line(read):
    error = read(SPEC).error("it is too much", "grid", "kernel")
    assert isinstance(error, SpecError)
    assert str(error) == "grid.yaml, line 6: it is too much"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *[("1e-3", 1e-3), ("1e5", 1e5), ("1.5e3", 1500.0), ("-2E+2", -200.0), (".5", 0.5)],
        *[("1.", 1.0), ("3.14", 3.14), ("1.5", 1.5), (".inf", math.inf), ("-.Inf", -math.inf)],
        *[("0", 0), ("-12", -12), ("+7", 7), ("010", 10), ("0o10", 8), ("0x1F", 31)],
        *[("true", True), ("True", True), ("FALSE", False), ("yes", "yes"), ("no", "no")],
        *[("on", "on"), ("Off", "Off"), ("y", "y"), ("null", None), ("~", None), ("", None)],
        *[("12:00:00", "12:00:00"), ("1:30", "1:30"), ("2024-01-31", "2024-01-31")],
        *[
            ("1_000", "1_000"),
            ("e5", "e5"),
            ("-", None),
            ("1e", "1e"),
            ("=", "="),
            ("'1e5'", "1e5"),
        ],
    ],
)
def test_that_plain_words_are_read_as_in_yaml_1_2(read, word, value):
    expected = [None] if word == "-" else value
    text = "a:\n  -" if word == "-" else f"a: {word}"
    read_value = read(text).values["a"]
    assert read_value == expected
    assert type(read_value) is type(expected)


def test_that_nan_is_a_number(read):
    assert math.isnan(read("a: .nan").values["a"])


def test_that_anchors_aliases_and_merges_are_followed(read):
    file = read(
        "base: &base\n"
        "  a: 1\n"
        "  b: 2\n"
        "first:\n"
        "  <<: *base\n"
        "  b: 3\n"
        "second: *base\n"
        "third:\n"
        "  <<: [*base, {c: 4}]\n"
    )
    assert file.values["first"] == {"a": 1, "b": 3}
    assert file.values["second"] == {"a": 1, "b": 2}
    assert file.values["third"] == {"a": 1, "b": 2, "c": 4}
    assert file.line("first", "b") == 6
    assert file.line("first", "a") == 2
    assert file.line("second") == 7
    assert file.line("third", "c") == 9


def test_that_a_merge_of_a_merge_is_no_duplicate(read):
    file = read("a: &a {x: 1}\nb: &b\n  <<: *a\n  x: 2\nc:\n  <<: *b\n  x: 3\n")
    assert [file.values[name]["x"] for name in "abc"] == [1, 2, 3]


def test_that_an_anchor_used_again_and_again_costs_little(read):
    lines = ["a0: &a0 [1, 2]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    assert read("\n".join(lines)).line("a59", 0) == 59


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "grid.yaml, line 3: the key 'a' is already in line 1"),
        ("x:\n  - {a: 1,\n     a: 2}", "grid.yaml, line 3: the key 'a' is already in line 2"),
        ("1: a\n0x1: b", "grid.yaml, line 2: the key 1 is already in line 1"),
        ("a: [1, 2\nb: 3", "grid.yaml, line 2: expected ',' or ']'"),
        ("a: 'open", "grid.yaml, line 1: found unexpected end of stream"),
        ("a: 1\n\tb: 2", "grid.yaml, line 2: found character '\\t' that cannot start any token"),
        ("a: b: c", "grid.yaml, line 1: mapping values are not allowed here"),
        ("a: *b", "grid.yaml, line 1: found undefined alias 'b'"),
        (
            "a: 1\nb: !!python/object:os.system x",
            "grid.yaml, line 2: could not determine a constructor",
        ),
        ("a: !mine 1", "grid.yaml, line 1: could not determine a constructor"),
        ("a: !!timestamp 2024", "grid.yaml, line 1: could not determine a constructor"),
        ("a: !!int abc", "grid.yaml, line 1: 'abc' does not fit its type 'int'"),
        ("a: !!bool maybe", "grid.yaml, line 1: 'maybe' does not fit its type 'bool'"),
        ("a: " + "9" * 5000, "does not fit its type 'int'"),
        ("a: 1\n<<: 3", "grid.yaml, line 2: expected a mapping or list of mappings for merging"),
        ("a:\n  ? [1, 2]\n  : 3", "grid.yaml, line 2: a key must not be a list or a mapping"),
        ("a: 1\nb: &b\n  - 2\n  - *b", "grid.yaml, line 4: an alias inside of its own anchor"),
        ("a: &a\n  b: *a", "grid.yaml, line 2: an alias inside of its own anchor"),
        ("a: 1\nb: \x07", "grid.yaml, line 2: the character '\\x07' is not allowed"),
        ("a: 1\n---\nb: 2", "grid.yaml, line 2: but found another document"),
        ("a: " + "[" * 20_000, "grid.yaml is nested too deeply"),
        ("a: " + "{b: " * 20_000, "grid.yaml is nested too deeply"),
        ("- " * 20_000, "grid.yaml is nested too deeply"),
        ("", "grid.yaml is empty"),
        ("# nothing\n", "grid.yaml is empty"),
        ("---\n", "grid.yaml is empty"),
        ("- a\n- b", "grid.yaml must hold a mapping, not list"),
        ("hello", "grid.yaml must hold a mapping, not str"),
    ],
)
def test_that_a_file_that_cannot_be_used_is_refused_with_the_line(read, text, message):
    with pytest.raises(SpecError) as caught:
        read(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_that_a_missing_file_and_a_directory_are_told(tmp_path):
    with pytest.raises(SpecError, match=r"missing\.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_that_a_file_in_another_encoding_is_told(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: Müller".encode("latin-1"))
    with pytest.raises(SpecError, match="it is not a text in UTF-8"):
        read_yaml(path)


def test_that_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes("\ufeffname: Müller\r\ngrid: {}\r\n".encode())
    file = read_yaml(path)
    assert file.values == {"name": "Müller", "grid": {}}
    assert file.line("grid") == 2
