"""MRI reconstruction with diffusion priors learned from undersampled, noisy, multi-coil k-space.

    scan = open_fastmri(path)
    slice_ = prepare_slice(scan.read_slice(0), scan.mask, keep_reference=True)
    result = reconstruct(slice_, load_prior(bundled_prior()), load(Recipe, "posterior"), torch.Generator())

Research use only. Not for diagnostic use.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

try:
    __version__ = version("mrgen")
except PackageNotFoundError:
    __version__ = "not installed"  # a checkout on the path: which version it is, nobody has recorded

if TYPE_CHECKING:
    from mrgen.errors import MrgenError
    from mrgen.posterior.reconstruct import Reconstruction, posterior_samples, reconstruct
    from mrgen.prior.data import TrainingSet
    from mrgen.prior.files import Prior, bundled_prior, load_prior
    from mrgen.prior.train import train
    from mrgen.scans.fastmri import open_fastmri
    from mrgen.scans.prepare import prepare_slice, undersampling_mask
    from mrgen.scans.scan import Scan, Slice
    from mrgen.settings import Protocol, Recipe, load

__all__ = [
    "MrgenError",
    "Prior",
    "Protocol",
    "Recipe",
    "Reconstruction",
    "Scan",
    "Slice",
    "TrainingSet",
    "__version__",
    "bundled_prior",
    "load",
    "load_prior",
    "open_fastmri",
    "posterior_samples",
    "prepare_slice",
    "reconstruct",
    "train",
    "undersampling_mask",
]

# The modules of these names, imported when one is first asked for: torch takes seconds, and not every command needs it.
_HOMES = {
    "mrgen.errors": ("MrgenError",),
    "mrgen.posterior.reconstruct": ("Reconstruction", "posterior_samples", "reconstruct"),
    "mrgen.prior.data": ("TrainingSet",),
    "mrgen.prior.files": ("Prior", "bundled_prior", "load_prior"),
    "mrgen.prior.train": ("train",),
    "mrgen.scans.fastmri": ("open_fastmri",),
    "mrgen.scans.prepare": ("prepare_slice", "undersampling_mask"),
    "mrgen.scans.scan": ("Scan", "Slice"),
    "mrgen.settings": ("Protocol", "Recipe", "load"),
}

if not TYPE_CHECKING:  # a type checker would believe that every name exists

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                globals()[name] = found = getattr(import_module(home), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
