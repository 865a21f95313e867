"""One import name, everything in the package, no name that hides another."""

import os
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_FLOORS = {"tests", "docs", "benchmarks", "seggym", "build", "dist"}


def floors():
    """Folders of the repository that hold modules of the package, as they are named in it."""
    found = []
    for folder in sorted(ROOT.iterdir()):
        if folder.is_dir() and folder.name not in NOT_FLOORS and not folder.name.startswith("."):
            found += sorted({path.parent for path in folder.rglob("*.py")})
    return [path.relative_to(ROOT) for path in found]


def run(code, cwd):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize("floor", floors(), ids=str)
def test_every_folder_is_a_package_that_setup_knows(floor):
    assert (ROOT / floor / "__init__.py").is_file(), f"{floor} has modules but no __init__.py"
    assert f'"{".".join(floor.parts)}"' in (ROOT / "setup.py").read_text()


def test_the_links_are_relative_and_complete():
    links = {path.name: os.readlink(path) for path in (ROOT / "seggym").iterdir() if path.is_symlink()}
    assert links == {floor.name: f"../{floor.name}" for floor in floors() if len(floor.parts) == 1}


def test_no_folder_hides_an_installed_package():
    """Run from its root, a script finds the folders of the repository first."""
    tops = {floor.parts[0] for floor in floors()}
    assert not tops & set(sys.stdlib_module_names)
    others = {name for name, owners in packages_distributions().items() if set(owners) != {"seggym"}}
    assert not tops & others


def test_no_module_of_agents_hides_another():
    """`python agents/x.py` puts agents/ first on the path."""
    names = {path.stem for path in (ROOT / "agents").iterdir() if path.suffix in (".py", "")} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)
    assert not names & set(packages_distributions())


@pytest.mark.parametrize("floor", ["envs", "agents", "cohorts", "kspace", "reward_models", "configs"])
def test_a_bare_import_is_refused(floor):
    """It would load every module a second time, under another name."""
    result = run(f"import {floor}", cwd=ROOT)
    assert result.returncode != 0
    assert "ImportError" in result.stderr


def test_the_version_is_the_same_everywhere():
    import seggym

    assert f'version = "{seggym.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert seggym.__version__ in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_a_wheel_from_the_source_archive_works_alone(tmp_path):
    """sdist -> wheel -> import from an unpacked wheel, with nothing of the repository on the path."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, source], check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", source]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"seggym"}
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"seggym/{path.relative_to(ROOT)}" in names
    assert "seggym/py.typed" in names
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); import seggym, gymnasium;"
        "import seggym.envs.kspace.environment, seggym.agents, seggym.cli;"
        f"assert seggym.__file__.startswith({str(tmp_path)!r}), seggym.__file__"
    )
    result = run(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
