"""What can be wrong in Dask's configuration as a whole; pure functions of what is set."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.config
import distributed  # noqa: F401 - its defaults are known then
import yaml

from daskspace.clusters.section import RENAMED, defaults
from daskspace.clusters.sources import Entry, canonical
from daskspace.clusters.traps import Finding, yaml_number
from daskspace.errors import did_you_mean

Path = tuple[str, ...]

_OTHERS = frozenset(
    (
        *("jobqueue", "mpi", "yarn", "kubernetes", "gateway", "cloudprovider"),
        *("labextension", "ctl", "coiled", "saturn", "cuda", "logging", "logging-file-config"),
        *("scheduler", "scheduler-address", "num-workers", "pool", "callbacks", "multiprocessing"),
    )
)
"""Sections and keys of Dask and its companions that have no defaults, or may not be installed."""
_MEMORY = ("distributed", "worker", "memory")
_THRESHOLDS = ("target", "spill", "pause", "terminate")


@dataclass(frozen=True)
class Configuration:
    """What files, environment variables and options set; of two, the later one counts.

    Parameters
    ----------
    entries : sequence of Entry
        All of it, in that order.
    """

    entries: Sequence[Entry]

    def history(self, path: str | Path) -> list[Entry]:
        """Return all who set a key; the last one counts."""
        return self._by_path.get(canonical(path), [])

    def last(self, path: str | Path) -> Entry | None:
        """Return who sets what counts for a key."""
        found = self.history(path)
        return found[-1] if found else None

    def below(self, path: str | Path) -> dict[str, Entry]:
        """Return what is set in a section, by name, with hyphens."""
        names = canonical(path)
        return {key[-1]: entries[-1] for key, entries in self._by_path.items() if key[:-1] == names}

    @functools.cached_property
    def _by_path(self) -> dict[Path, list[Entry]]:
        found: dict[Path, list[Entry]] = {}
        for entry in self.entries:
            for i in range(1, len(entry.path)):  # a variable sets sections by the way
                found.setdefault(canonical(entry.path[:i]), [])
            found.setdefault(canonical(entry.path), []).append(entry)
        return {path: entries for path, entries in found.items() if entries} | {
            path: [Entry(path, {}, "")] for path, entries in found.items() if not entries
        }


def oddities_in(entries: Iterable[Entry]) -> Iterator[Finding]:
    """Yield what is odd about how keys are written and set, whatever they mean."""
    entries = list(entries)
    yield from _repeated(entries)
    yield from _spelled_twice(entries)
    yield from _hidden(entries)


def as_dask_takes(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries of one of Dask's own files that count.

    Of a key that is spelled with a hyphen and with an underscore Dask takes the first.
    """
    spelled: dict[Path, Path] = {}
    return [e for e in entries if spelled.setdefault(canonical(e.path), e.path) == e.path]


def mistakes_in(configuration: Configuration) -> Iterator[Finding]:
    """Yield what Dask does not read as it is meant, outside of ``jobqueue``."""
    for look in (_misplaced, _unknown, _environment, _kinds, _thresholds):
        yield from look(configuration)


def known_keys(section: str) -> frozenset[str]:
    """Return the keys that a section has by default, with hyphens; empty: the top level."""
    return frozenset(defaults_of(section))


def defaults_of(section: str) -> dict[str, Any]:
    """Return the defaults of a section, with hyphens."""
    return _defaults(canonical(section) if section else (), len(dask.config.defaults))


@functools.lru_cache
def _all_defaults(count: int) -> Mapping[str, Any]:
    """Return the defaults of all packages; `count` changes when one more has registered its own."""
    found: Mapping[str, Any] = dask.config.merge(*dask.config.defaults, {"jobqueue": defaults()})
    return found


@functools.lru_cache
def _defaults(path: Path, count: int) -> dict[str, Any]:
    found: Any = _all_defaults(count)
    for name in path:
        found = {canonical(str(k))[0]: v for k, v in found.items()}.get(name)
        if not isinstance(found, Mapping):
            return {}
    return {canonical(str(key))[0]: value for key, value in found.items()}


def _repeated(entries: Sequence[Entry]) -> Iterator[Finding]:
    for entry in entries:
        if entry.repeated:
            remedy = "remove one of them"
            found = f"is set in {entry.repeated} as well; only the last one counts"
            level = "note" if isinstance(entry.value, list | None) and not entry.value else "error"
            yield Finding(level, ".".join(entry.path), entry.place, found, remedy)


def _spelled_twice(entries: Sequence[Entry]) -> Iterator[Finding]:
    seen: dict[tuple[str, Path], Entry] = {}
    for entry in entries:
        file = _file(entry)
        other = seen.get((file, canonical(entry.path)))
        if other is not None and other.path[-1] != entry.path[-1]:
            found = f"is the same key as {other.path[-1]} in {other.place}"
            remedy = "remove one: Dask takes the first of its own files, the last of others"
            yield Finding("error", ".".join(entry.path), entry.place, found, remedy)
        seen[file, canonical(entry.path)] = entry


def _hidden(entries: Sequence[Entry]) -> Iterator[Finding]:
    last: dict[Path, Entry] = {}
    for entry in entries:
        if isinstance(entry.value, Mapping) and entry.value:
            continue
        before = last.get(canonical(entry.path))
        if before is not None and _file(before) != _file(entry) and before.value != entry.value:
            found = f"{entry.value!r} hides {before.value!r} of {before.place}"
            yield Finding("note", ".".join(entry.path), entry.place, found)
        last[canonical(entry.path)] = entry


def _misplaced(configuration: Configuration) -> Iterator[Finding]:
    """Yield top-level keys that nothing reads."""
    in_distributed, dask_keys = _known_below(("distributed",)), _known_below(())
    known = {*dask_keys, *_OTHERS}
    for name, entry in configuration.below(()).items():
        if not entry.place or entry.place.startswith("environment"):
            continue
        spelled = entry.path[-1]
        children = configuration.below((name,))
        strays = [child for child in children if child not in _known_below((name,))]
        new = dask.config.deprecations.get(name) or dask.config.deprecations.get(spelled)
        if name == "logging":
            found = "is read as long as nothing sets distributed.logging"
            yield Finding("note", spelled, entry.place, found, "move it below distributed:")
        elif (
            name in in_distributed
            and isinstance(entry.value, Mapping)
            and (name not in dask_keys or strays)
        ):
            what = f"{', '.join(strays)} in it" if name in dask_keys else "it"
            found = f"nothing reads {what} at the top level"
            yield Finding("warning", spelled, entry.place, found, "move it below distributed:")
        elif new and name not in ("ucx", "rmm"):
            yield Finding(
                "warning", spelled, entry.place, f"is now called {new}", f"rename it: {new}"
            )
        elif name not in known:
            if name in known_keys("jobqueue") and isinstance(entry.value, Mapping):
                found = "nothing reads it at the top level"
                yield Finding("warning", spelled, entry.place, found, "move it below jobqueue:")
            elif near := did_you_mean(name, sorted(known)):
                found = "no package that is here reads it"
                yield Finding("warning", spelled, entry.place, found, near.removeprefix("; "))


def _unknown(configuration: Configuration) -> Iterator[Finding]:
    """Yield keys that Dask does not know in sections that it does."""
    done: set[Path] = set()
    for entry in configuration.entries:
        path = canonical(entry.path)
        if path in done or len(path) < 2 or path[0] == "jobqueue":
            continue
        known = _known_below(path[:-1])
        if not known or path[-1] in known or path[:2] == ("distributed", "logging"):
            continue
        if path[0] == "admin" and path[1] in _known_below(("distributed", "admin")):
            continue  # told already
        done.add(path)
        near = did_you_mean(path[-1], sorted(known))
        yield Finding(
            "warning" if near else "note",
            ".".join(entry.path),
            entry.place,
            f"nothing known reads {entry.path[-1]} in {'.'.join(path[:-1])}",
            near.removeprefix("; "),
        )


def _environment(configuration: Configuration) -> Iterator[Finding]:
    """Yield variables that look like a key and are none."""
    flat = {"_".join(path).replace("-", "_"): path for path in _all_paths()}
    tops = {*_known_below(()), *_OTHERS}
    for entry in configuration.entries:
        path = canonical(entry.path)
        if not entry.place.startswith("environment") or path[0] in tops:
            continue
        words = "_".join(entry.path).replace("-", "_")
        meant = flat.get("_".join(word for word in words.split("_") if word))
        variable = entry.place.removeprefix("environment variable ")
        if meant is not None:
            right = "__".join(name.upper().replace("-", "_") for name in meant)
            yield Finding(
                "warning",
                variable,
                entry.place,
                f"sets {'.'.join(path)}, which nothing reads",
                f"a point is two underscores: DASK_{right}",
            )
        else:
            found = f"sets {'.'.join(path)}, which nothing known reads"
            yield Finding("note", variable, entry.place, found)


def _kinds(configuration: Configuration) -> Iterator[Finding]:
    """Yield values that Dask cannot take."""
    for path in {canonical(entry.path): None for entry in configuration.entries}:
        entry = configuration.last(path)
        if entry is None or not entry.place or path[0] == "jobqueue":
            continue
        key = ".".join(entry.path)
        if changed := yaml_number(entry):
            yield Finding("warning", key, entry.place, changed, f"put it in quotes: '{entry.text}'")
            continue
        if path[:-1] == _MEMORY and path[-1] in _THRESHOLDS:
            continue
        schema = _schema_of(path)
        if wrong := _misfit(entry.value, schema):
            yield Finding("warning", key, entry.place, wrong, _meaning(schema))


def _thresholds(configuration: Configuration) -> Iterator[Finding]:
    standard = defaults_of(".".join(_MEMORY))
    before: tuple[str, float] | None = None
    for name in _THRESHOLDS:
        entry = configuration.last((*_MEMORY, name))
        value = entry.value if entry is not None else standard.get(name)
        key = f"{'.'.join(_MEMORY)}.{name}"
        if value is False or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            if entry is not None:
                found = f"{value!r} is no fraction"
                yield Finding("error", key, entry.place, found, "such as 0.8, or false for off")
            continue
        if value == 0:
            if entry is not None:
                yield Finding("note", key, entry.place, "0 switches it off, as false does")
            continue
        if before is not None and before[1] > value:
            places = [configuration.last((*_MEMORY, n)) for n in (name, before[0])]
            place = next((e.place for e in places if e is not None), "")
            if place:
                found = f"{name} {value:g} is below {before[0]} {before[1]:g}"
                remedy = "keep them in order: target, spill, pause, terminate"
                yield Finding("warning", key, place, found, remedy)
        before = (name, value)


def _file(entry: Entry) -> str:
    """Return the file of an entry, or the variable that it is from."""
    file, colon, line = entry.place.rpartition(":")
    return file if colon and line.isdigit() else entry.place


# --- what Dask and distributed say of their keys ---


@functools.cache
def _schemas() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for package in ("dask", "distributed", "daskspace"):
        try:
            text = importlib.resources.files(package).joinpath(f"{package}-schema.yaml").read_text()
            found.update(yaml.safe_load(text)["properties"])
        except (OSError, ModuleNotFoundError, KeyError, TypeError, yaml.YAMLError):
            continue
    return {"properties": found}


def _schema_of(path: Path) -> Mapping[str, Any]:
    schema: Any = _schemas()
    for name in path:
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        by_name = {canonical(str(k))[0]: v for k, v in (properties or {}).items()}
        schema = by_name.get(name)
    return schema if isinstance(schema, Mapping) else {}


def _known_below(path: Path) -> set[str]:
    """Return the names that a section is known to have; empty where it may have any."""
    known = _defaults(path, len(dask.config.defaults))
    schema = _schema_of(path).get("properties") if path else _schemas()["properties"]
    return {*known, *(canonical(str(key))[0] for key in schema or ())}


def _all_paths() -> Iterator[Path]:
    def walk(section: Mapping[str, Any], path: Path) -> Iterator[Path]:
        for name, value in section.items():
            below = (*path, canonical(str(name))[0])
            yield below
            if isinstance(value, Mapping):
                yield from walk(value, below)

    yield from walk(_all_defaults(len(dask.config.defaults)), ())
    systems = known_keys("jobqueue")
    yield from (("jobqueue", system, old) for system in systems for old in RENAMED)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str | int | float),  # 30 for "30s" is fine
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list | tuple),
    "object": lambda value: isinstance(value, Mapping),
    "null": lambda value: value is None,
}


def _misfit(value: Any, schema: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, empty if nothing is."""
    if value is None or _fits(value, schema):
        return ""
    return f"{value!r} is a text" if isinstance(value, str) else f"{value!r} is not what it can be"


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    for word in ("oneOf", "anyOf"):
        if word in schema:
            return any(_fits(value, choice) for choice in schema[word])
    if "enum" in schema:
        return any(value == choice and type(value) is type(choice) for choice in schema["enum"])
    wanted = schema.get("type", [])
    kinds = [_KINDS[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted)]
    if kinds and not any(fits(value) for fits in kinds):
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    return True


def _meaning(schema: Mapping[str, Any]) -> str:
    """Return what a schema takes."""
    for word in ("oneOf", "anyOf"):
        if word in schema:
            return " or ".join(filter(None, map(_meaning, schema[word])))
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    wanted = schema.get("type", "")
    text = wanted if isinstance(wanted, str) else " or ".join(wanted)
    return f"a {text}" if text else ""
