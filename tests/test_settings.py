"""The TOML files that ship, the errors a wrong one gives, and the READMEs that explain the keys."""

import re
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch

from mrgen.errors import MrgenError
from mrgen.physics.masks import PATTERNS, sampling_mask, sampling_probability
from mrgen.prior.data import gsure_weights
from mrgen.settings import Protocol, Recipe, Sampling, Settings, available, load, settings_folder

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
        (
            Protocol,
            'description = "d"\nanatomy = "brain"\n[sampling]\nacceleration = [4, 8]\ncenter_fraction = [0.08]',
            "sampling.center_fraction: expected one number between 0 and 1, or one for each different R, found 0.08",
        ),
        (
            Protocol,
            'description = "d"\nanatomy = "brain"\n[sampling]\nacceleration = [4, 4]\ncenter_fraction = [0.08, 0.04]',
            "one for each different R, found 0.08, 0.04",
        ),
        (
            Protocol,
            'description = "d"\nanatomy = "brain"\n[sampling]\nacceleration = [4, 8]\ncenter_fraction = [0.08, 0]',
            "one for each different R, found 0.08, 0",
        ),
        (Protocol, 'description = "d"\nanatomy = "brain"\n[sampling]\ncenter_fraction = []', "found none"),
        (Protocol, 'description = "d"\nanatomy = "brain"\n[sampling]\npattern = "spiral"', "sampling.pattern"),
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


def test_every_r_has_its_centre_fraction():
    one = Sampling(acceleration=(4.0, 8.0), center_fraction=0.08)
    assert [one.fraction(r) for r in (4.0, 8.0, 5.0)] == [0.08] * 3
    each = Sampling(acceleration=(4.0, 8.0), center_fraction=(0.08, 0.04))
    assert [each.fraction(r) for r in (4.0, 8.0)] == [0.08, 0.04]
    with pytest.raises(ValueError, match="no centre fraction is given for R = 5, only for 4, 8"):
        each.fraction(5.0)
    assert Sampling(acceleration=(2.0, 2.0, 4.0), center_fraction=0.1).fraction(2.0) == 0.1  # an R may count twice


def test_the_patterns_are_those_of_the_masks():
    assert set(get_args(Sampling.model_fields["pattern"].annotation)) == set(PATTERNS)


FASTMRI = ["knee-pd", "knee-pdfs", "brain-t1", "brain-t1post", "brain-t2", "brain-flair"]
LINES = (256, 300, 320, 332, 368, 372, 392, 396, 640)  # phase-encode lines: of fastMRI files, and some more


def test_fastmris_pairs_of_r_and_centre_ship_for_each_contrast():
    assert set(FASTMRI) <= set(available(Protocol))
    for name in FASTMRI:
        sampling = load(Protocol, name).sampling
        assert {r: sampling.fraction(r) for r in sampling.acceleration} == {4: 0.08, 6: 0.06, 8: 0.04, 10: 0.04}
    assert len({load(Protocol, name).description for name in FASTMRI}) == len(FASTMRI)


@pytest.mark.parametrize("name", available(Protocol))
def test_shipped_protocols_sample_every_line(name):
    sampling = load(Protocol, name).sampling
    for n in LINES:
        for r in sampling.acceleration:
            probability = sampling_probability(sampling.pattern, n, r, sampling.fraction(r))
            torch.testing.assert_close(gsure_weights(probability) * probability, torch.ones(n))
            assert float(probability.sum()) == pytest.approx(n / r)
            mask = sampling_mask(sampling.pattern, n, r, sampling.fraction(r), np.random.RandomState(0))
            assert mask.shape == (n,)


@pytest.mark.parametrize("n", [320, 368, 396])
def test_fastmris_own_masks_could_not_train_the_shipped_protocols(n):
    sampling = load(Protocol, "knee-pd").sampling
    for r in sampling.acceleration:
        fraction, edge = sampling.fraction(r), round(0.05 * n)
        masks = [sampling_mask("equispaced", n, r, fraction, np.random.RandomState(seed)) for seed in range(300)]
        never = torch.stack(masks).sum(0)[edge : n - edge] == 0
        assert bool(never.any()) or r in (6, 10)
        expected = pytest.raises(MrgenError, match="never sampled by this protocol") if never.any() else nullcontext()
        with expected:
            gsure_weights(sampling_probability("equispaced", n, r, fraction))
