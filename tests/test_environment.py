"""environment.yml, pyproject.toml and the lock say the same."""

import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from cllib.notebooks import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCK = (ROOT / ".requirements.lock").read_text()


def locked() -> dict[str, list[str]]:
    """Return {package: versions}; a package may have one version for each Python or system."""
    versions: dict[str, list[str]] = {}
    for line in LOCK.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            versions.setdefault(canonicalize_name(requirement.name), []).append(specifier.version)
    return versions


def test_conda_brings_python_and_pip_and_pip_the_lock() -> None:
    python, pip, by_pip = ENVIRONMENT["dependencies"]
    assert ENVIRONMENT["name"] == PROJECT["name"]
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip"
    assert by_pip == {"pip": ["-r .requirements.lock", "-e ."]}


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])
def test_the_lock_satisfies_every_requirement(text: str) -> None:
    requirement = Requirement(text)
    versions = locked()[canonicalize_name(requirement.name)]
    assert all(version in requirement.specifier for version in versions)


def test_the_lock_names_no_host() -> None:
    assert "://" not in LOCK
    assert "--index-url" not in LOCK
