"""The package as a whole: what importing it costs, and that its files are true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import daskspace

ROOT = Path(__file__).parents[1]


def loaded_after(code):
    program = f"import sys\n{code}\nprint(' '.join(sorted(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(ran.stdout.split())


@pytest.mark.parametrize("code", ["import daskspace", "import daskspace.cli"])
def test_importing_it_imports_no_dask(code):
    heavy = {"dask", "distributed", "pandas", "numpy", "rich", "yaml"}
    assert not loaded_after(code) & heavy


def test_every_public_name_is_found():
    for name in daskspace.__all__:
        assert getattr(daskspace, name) is not None
    assert not hasattr(daskspace, "no_such_name")


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert version("daskspace") == daskspace.__version__


def test_dask_is_imported_in_its_rooms_only():
    rooms = {"backends", "clusters"}
    for path in (ROOT / "src/daskspace").rglob("*.py"):
        runtime = path.read_text().replace("if TYPE_CHECKING:\n    from distributed", "")
        if re.search(r"^\s*(from|import) (dask|distributed)\b", runtime, re.M):
            assert path.parent.name in rooms, path


LAYERS = [
    *("errors", "execution", "clusters", "results", "operations", "backends"),
    *("testing", "cli"),
]


def test_imports_point_downwards():
    for path in (ROOT / "src/daskspace").rglob("*.py"):
        room = path.relative_to(ROOT / "src/daskspace").parts[0].removesuffix(".py")
        if room not in LAYERS:
            continue
        for target in re.findall(r"^\s*(?:from|import) daskspace\.(\w+)", path.read_text(), re.M):
            assert LAYERS.index(target) <= LAYERS.index(room), f"{path} imports {target}"


def test_the_shipped_configurations_are_those_at_the_top_and_each_is_told_of():
    from daskspace.clusters.config_files import shipped_configs

    names = {path.stem for path in (ROOT / "cluster_configs").iterdir()}
    assert names == set(shipped_configs())
    told = (ROOT / "docs/configs.md").read_text()
    assert all(f"`{name}`" in told for name in names)


def test_links_between_our_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} -> {link}"
