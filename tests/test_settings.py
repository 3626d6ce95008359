"""The TOML files that ship, the errors a wrong one gives, and the READMEs that explain the keys."""

import re
import tomllib
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from mrgen.errors import MrgenError
from mrgen.settings import Protocol, Recipe, Settings, available, load, settings_folder

KINDS = [Protocol, Recipe]
SHIPPED = [pytest.param(kind, name, id=f"{kind.__name__}-{name}") for kind in KINDS for name in available(kind)]


def keys(kind: type[Settings]) -> set[str]:
    """Every key a file may hold, tables included."""
    found = set()
    for name, field in kind.model_fields.items():
        found.add(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            found |= keys(field.annotation)
    return found


def readme(kind: type[Settings]) -> str:
    return (settings_folder(kind) / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_something_ships(kind):
    assert available(kind)


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_shipped_file_loads(kind, name):
    settings = load(kind, name)
    assert settings.description


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_name_lists_what_exists(kind):
    with pytest.raises(MrgenError, match="no-such-name") as error:
        load(kind, "no-such-name")
    assert all(name in str(error.value) for name in available(kind))


@pytest.mark.parametrize(
    ("kind", "text", "culprit"),
    [
        (Protocol, 'description = "d"\nanatomy = "brain"\ncolour = 1', "colour"),
        (Protocol, 'description = "d"\nanatomy = "brain"\n[training]\nstep = 5', "training.step"),
        (Protocol, 'description = "d"\nanatomy = "brain"\n[sampling]\ncenter_fraction = 1.5', "center_fraction"),
        (Protocol, 'description = "d"', "anatomy"),
        (Protocol, 'description = "d"\nanatomy = "brain"\n[network]\nwidths = [64, 100]', "network.widths: expected"),
        (Protocol, 'description = "d"\nanatomy = "brain"\n[network]\nwidths = [0, 16]', "multiples of 16"),
        (Protocol, 'description = "d"\nanatomy = "brain"\n[network]\nwidths = []', "network.widths"),
        (Recipe, 'description = "d"\nsampels = 8', "sampels"),
        (Recipe, 'description = "d"\nsamples = 1', "samples"),
        (Recipe, 'description = "d"\nsampler = "magic"', "sampler"),
        (Recipe, "description = ", "not valid TOML"),
    ],
)
def test_wrong_file_is_named_with_its_key(kind, text, culprit, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(MrgenError, match=r"mine\.toml") as error:
        load(kind, str(path))
    assert culprit in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_utf8_on_any_computer(kind, tmp_path):
    path, text = tmp_path / "mine.toml", 'description = "Schädel"\nanatomy = "head"\n'
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(MrgenError, match=r"mine\.toml is not valid TOML: .*utf-8") as error:
        load(kind, str(path))
    assert "\n" not in str(error.value)
    if kind is Protocol:
        path.write_bytes(text.encode("utf-8"))
        assert load(kind, str(path)).description == "Schädel"


@pytest.mark.parametrize("kind", KINDS)
def test_settings_do_not_change_after_loading(kind):
    settings = kind(description="d", **({"anatomy": "brain"} if kind is Protocol else {}))
    with pytest.raises(ValueError, match="frozen"):
        settings.description = "other"


@pytest.mark.parametrize("kind", KINDS)
def test_readme_explains_every_key_and_no_other(kind):
    tables = {name for name, field in kind.model_fields.items() if isinstance(field.default, Settings)}
    rows = set(re.findall(r"^\| `(\w+)` \|", readme(kind), re.MULTILINE))
    assert rows == keys(kind) - tables
    assert all(f"`[{name}]`" in readme(kind) for name in tables)


def choices(kind: type[Settings]) -> set[str]:
    """Every word that a key may be set to, tables included."""
    found = set()
    for field in kind.model_fields.values():
        if get_origin(field.annotation) is Literal:
            found |= set(get_args(field.annotation))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            found |= choices(field.annotation)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_readme_names_every_choice(kind):
    assert all(f"`{choice}`" in readme(kind) for choice in choices(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_readme_example_is_valid(kind):
    examples = re.findall(r"```toml\n(.*?)```", readme(kind), re.DOTALL)
    assert examples
    for example in examples:
        kind.model_validate(tomllib.loads(example))


def test_a_path_is_read_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('description = "my own"')
    assert load(Recipe, "mine.toml").description == "my own"
