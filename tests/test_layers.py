"""Imports inside mrgen point one way, settings folders hold data only, and nothing is unpickled."""

import ast
from pathlib import Path

import pytest

import mrgen

PACKAGE = Path(__file__).parents[1] / "mrgen"
FILES = sorted(PACKAGE.rglob("*.py"))
EVERYONE = {"errors", "settings"}

# What each layer may import besides itself. The package's own __init__ and cli may import everything.
ALLOWED = {
    "errors": set(),
    "settings": {"errors"},
    "physics": EVERYONE,
    "scans": {"physics"} | EVERYONE,
    "prior": {"physics", "scans"} | EVERYONE,
    "posterior": {"physics", "scans", "prior"} | EVERYONE,
    "review": {"physics", "scans", "prior", "posterior"} | EVERYONE,
}
ALLOWED["cli"] = set(ALLOWED)
ALLOWED["__init__"] = set(ALLOWED)
ALLOWED["__main__"] = {"cli"}

UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}


def layer(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(tree: ast.AST, package: tuple[str, ...]) -> list[str]:
    """Dotted names of everything imported by a module of `package`, anywhere in it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{prefix}.{alias.name}" for alias in node.names]
    return found


def layers_imported(tree: ast.AST, package: tuple[str, ...] = ("mrgen",)) -> set[str]:
    """First part below mrgen of each import; dunders such as mrgen.__version__ belong to no layer."""
    names = [name.split(".") for name in modules(tree, package)]
    return {n[1] if len(n) > 1 else "__init__" for n in names if n[0] == "mrgen" and not n[-1].startswith("__")}


def unpickles(tree: ast.AST) -> bool:
    if any(name.split(".")[0] in UNPICKLERS or name == "torch.load" for name in modules(tree, ("mrgen",))):
        return True
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(ast.unparse(call.func) == "torch.load" for call in calls) or any(
        keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
        for call in calls
        for keyword in call.keywords
    )


def parse(file: Path) -> ast.AST:
    return ast.parse(file.read_text(), filename=str(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    package = ("mrgen", *file.relative_to(PACKAGE).parts[:-1])
    own = layer(file)
    assert own in ALLOWED, f"{own} has no place in the table of layers"
    assert layers_imported(parse(file), package) - {own} <= ALLOWED[own]


def test_every_public_name_is_found_where_type_checkers_find_it():
    """Names are imported when they are asked for."""
    homes = [f"{home}.{name}" for home, names in mrgen._HOMES.items() for name in names]
    told = modules(parse(PACKAGE / "__init__.py"), ("mrgen",))
    assert sorted(homes) == sorted(name for name in told if name.startswith("mrgen."))
    assert {home.rpartition(".")[2] for home in homes} | {"__version__"} == set(mrgen.__all__) <= set(dir(mrgen))
    for name in mrgen.__all__:
        assert getattr(mrgen, name) is not None
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from mrgen import nothing  # noqa: F401


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_is_unpickled(file):
    assert not unpickles(parse(file))


@pytest.mark.parametrize("name", ["protocols", "recon"])
def test_settings_folders_hold_data_beside_the_package(name):
    assert not (PACKAGE / name).exists()
    assert not list((PACKAGE.parent / name).rglob("*.py"))


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import mrgen.review.figures", ("mrgen", "physics"), {"review"}),
        ("def f():\n    from mrgen.prior import unet", ("mrgen", "scans"), {"prior"}),
        ("from ..posterior import reconstruct", ("mrgen", "prior"), {"posterior"}),
        ("from . import unet", ("mrgen", "prior"), {"prior"}),
        ("from mrgen import scans, __version__", ("mrgen", "review"), {"scans"}),
        ("import mrgen", ("mrgen", "review"), {"__init__"}),
        ("import torch, numpy.fft", ("mrgen", "physics"), set()),
    ],
)
def test_the_parser_sees_every_form_of_import(source, package, expected):
    assert layers_imported(ast.parse(source), package) == expected


@pytest.mark.parametrize(
    "source",
    ["import pickle", "import torch\ntorch.load('x')", "from torch import load", "np.load('x', allow_pickle=True)"],
)
def test_the_parser_sees_every_form_of_unpickling(source):
    assert unpickles(ast.parse(source))
