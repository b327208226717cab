"""What pySPACE's configuration says to a backend."""

import logging

import pytest

from daskspace import ConfigError, create_backend
from daskspace.backends.configuration import log_level, setting


class Bunch(dict):
    """A mapping whose values are attributes as well, as pySPACE's is."""

    def __getattr__(self, name):
        return self[name]


class Plain:
    def __init__(self, **values):
        self.__dict__.update(values)


@pytest.fixture(params=[dict, Bunch, Plain])
def kind(request):
    return request.param


@pytest.mark.parametrize("backend_type", ["mcore", "mpi"])
def test_the_size_of_the_pool_is_the_number_of_workers(kind, backend_type):
    configuration = kind(pool_size=3, storage="/data")
    backend = create_backend(backend_type, configuration=configuration)
    assert backend.options == {"n_workers": 3}
    assert backend.configuration is configuration
    given = create_backend(backend_type, configuration=configuration, n_workers=5)
    assert given.options == {"n_workers": 5}


def test_an_option_that_is_given_counts_more_than_the_setting_that_stands_for_it(kind):
    configuration = kind(consumable_memory="850mb", consumable_cpus=2, job_class="general")
    given = {"memory": "2 GB", "queue": "long"}
    backend = create_backend("loadl", configuration=configuration, **given)
    assert backend.options["memory"] == "2 GB"
    assert "job_mem" not in backend.options
    assert (backend.options["queue"], backend.options["cores"]) == ("long", 2)


def test_serial_passes_over_what_is_for_others(kind):
    assert create_backend("serial", configuration=kind(pool_size=3)).options == {}


def test_the_settings_of_loadleveler_are_taken_over(kind):
    settings = {"job_class": "general", "consumable_memory": "850mb", "consumable_cpus": 2}
    backend = create_backend("loadl", configuration=kind(**settings, anode=""), queue="other")
    assert backend.options["queue"] == "other"
    assert backend.options["cores"] == 2
    assert backend.options["job_mem"] == "850mb"
    assert "requirements" not in backend.options


@pytest.mark.parametrize("pool_size", [0, -1, 2.5, "many", True, [3]])
def test_a_wrong_size_is_told_with_its_key_and_value(kind, pool_size):
    with pytest.raises(ConfigError, match="pool_size must be a whole number") as caught:
        create_backend("mcore", configuration=kind(pool_size=pool_size))
    assert repr(pool_size) in str(caught.value)


@pytest.mark.parametrize("pool_size", [None, ""])
def test_what_is_not_set_says_nothing(kind, pool_size):
    assert create_backend("mcore", configuration=kind(pool_size=pool_size)).options == {}


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("logging.INFO", 20),
        ("INFO", 20),
        ("warning", 30),
        (" logging.CRITICAL ", 50),
        (10, 10),
        ("35", 35),
        (logging.ERROR, 40),
        (0, 0),
    ],
)
def test_a_level_may_be_written_in_several_ways(text, level):
    assert log_level("file_log_level", text) == level


@pytest.mark.parametrize(
    "value", ["__import__('os').system('touch made')", "logging", "LOUD", -1, 1.5, True, [], "٣x"]
)
@pytest.mark.parametrize("key", ["file_log_level", "console_log_level"])
def test_a_wrong_level_is_told_and_never_evaluated(key, value, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"{key} must be a level") as caught:
        create_backend("serial", configuration=kind(**{key: value}))
    assert repr(value) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_levels_are_kept_by_the_logs(kind, tmp_path, monkeypatch, capsys):
    from daskspace import operation

    monkeypatch.chdir(tmp_path)
    levels = {"file_log_level": "logging.WARNING", "console_log_level": "INFO"}
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with create_backend("serial", configuration=kind(**levels)) as backend:
        op = backend.run(operation([], result_directory="here"))
        backend.stage_in(operation([], result_directory="there"))
        backend._log("mark", logging.WARNING)
        backend.cleanup()
    assert "mark" not in (tmp_path / op.result_directory / "operation.log").read_text()
    log = (tmp_path / "there" / "operation.log").read_text()
    assert log.endswith("WARNING  mark\n")
    assert log.count("\n") == 1
    shown = capsys.readouterr().err
    assert shown.count("WARNING  mark\n") == 1
    assert "consolidated" in shown


def test_an_attribute_that_cannot_be_had_is_not_set():
    class Moody:
        def __getattr__(self, name):
            raise KeyError(name)

    assert setting(Moody(), "pool_size") is None
    assert setting(None, "pool_size") is None
    assert setting(Bunch(), "pool_size") is None
