"""MRI reconstruction with diffusion priors learned from undersampled, noisy, multi-coil k-space.

    scan = open_fastmri(path)
    slice_ = prepare_slice(scan.read_slice(0), scan.mask, keep_reference=True)
    result = reconstruct(slice_, load_prior(bundled_prior()), load(Recipe, "posterior"), torch.Generator())

Research use only. Not for diagnostic use.
"""

from importlib.metadata import PackageNotFoundError, version

try:  # before the imports below, as modules among them write the version into their files
    __version__ = version("mrgen")
except PackageNotFoundError:
    __version__ = "not installed"  # a checkout on the path: which version it is, nobody has recorded

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
