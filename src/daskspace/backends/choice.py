"""Makes a backend from whatever was given."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskspace.backends import backend_class
from daskspace.backends.base import Backend
from daskspace.backends.configuration import options_from, set_log_levels
from daskspace.backends.options import check_section
from daskspace.clusters.config_files import is_path
from daskspace.clusters.dialects import Recipe, recognise
from daskspace.clusters.own_config import holding, register

if TYPE_CHECKING:
    from daskspace.backends.dask_backend import DaskBackend


def recipe_for(given: Any, config: Any = None, options: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe for what was given, where backends of other packages are known as well."""
    return recognise(given, config, options, _names_of_others)


def make_backend(
    given: Any, config: Any, options: Mapping[str, Any], configuration: Any = None
) -> DaskBackend:
    """Return a backend made from what was given; see `daskspace.create_backend`."""
    recipe = recipe_for(given, config, options)
    kind, keywords = _kind_of(recipe)
    if configuration is not None:
        names = getattr(kind, "configuration_options", {})
        keywords.update(options_from(configuration, names, keywords))
    with holding(recipe.config):
        check_section(recipe.files)
        backend: DaskBackend = kind(**keywords)
    backend.recipe, backend.given = recipe, _retold(given, config)
    backend.configuration = configuration
    set_log_levels(backend, configuration)
    if recipe.section is not None:
        backend.options["config_name"] = register(recipe.section, backend)
    return backend


def _kind_of(recipe: Recipe) -> tuple[Any, dict[str, Any]]:
    """Return the class of a backend, and its keywords."""
    keywords = dict(recipe.options)
    if recipe.backend is not None:
        if recipe.system is not None:
            keywords.pop("config_name", None)
        return backend_class(recipe.backend), keywords
    from daskspace.backends.attached import AttachedBackend, ClassBackend

    if recipe.client_kwargs:
        keywords.setdefault("client_kwargs", dict(recipe.client_kwargs))
    made = recipe.cluster_class
    found = _imported(made) if isinstance(made, str) else made
    if isinstance(found, type) and issubclass(found, Backend):
        return found, keywords
    if made is not None:
        if recipe.args:
            keywords["args"] = recipe.args
        if recipe.adapt:
            keywords.setdefault("adapt", dict(recipe.adapt))
        return ClassBackend, {"cluster_class": made, **keywords}
    places = {
        "target": recipe.target,
        "address": recipe.address,
        "scheduler_file": recipe.scheduler_file,
    }
    return AttachedBackend, {**{k: v for k, v in places.items() if v is not None}, **keywords}


def _imported(dotted: str) -> Any:
    """Return a class, if it is there; what its import does to Dask's configuration is to stay."""
    module, name = re.split(r":|\.(?=[^.]*$)", dotted)[:2]
    if module.partition(".")[0] == "dask_jobqueue":
        import daskspace.clusters.jobqueue  # noqa: F401 - without a trace in the user's home
    with contextlib.suppress(Exception):  # it is told by who needs it
        return getattr(importlib.import_module(module), name, None)
    return None


def _names_of_others() -> Iterable[str]:
    from daskspace.backends.installed import entry_points

    return entry_points()


def _retold(given: Any, config: Any) -> dict[str, Any] | None:
    """Return what was given as another program can give it again; None if it cannot."""
    configs = config if isinstance(config, list | tuple) else [config]
    told = [_text(part) for part in [given, *configs] if part is not None]
    if any(text is None for text in told):
        return None
    return {"backend": None if given is None else told.pop(0), "config": told}


def _text(part: Any) -> str | None:
    if isinstance(part, os.PathLike) or (isinstance(part, str) and is_path(part)):
        path = Path(part).expanduser()
        return str(path.absolute()) if path.exists() else os.fspath(part)
    return part if isinstance(part, str) else None
