"""Protocols and recipes: frozen, validated settings read from the TOML files of protocols/ and recon/.

Every default lives here, once, with its unit. A key that does not exist, or a value outside its range, is an
error that names the file.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from mrgen.errors import MrgenError

GROUPS = 16  # of the network's group normalisation


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sampling(Settings):
    """How k-space is sampled along the phase-encode axis, or both (`poisson-disc`); see mrgen.physics.masks."""

    pattern: Literal["random", "equispaced", "equispaced-any-offset", "magic", "poisson-disc"] = "equispaced-any-offset"
    acceleration: tuple[float, ...] = Field((4.0,), min_length=1, description="R; each scan gets one of these")
    center_fraction: float | tuple[float, ...] = Field(
        0.08, description="fraction of k-space fully sampled (ACS): one for all R, or one for each"
    )

    @field_validator("center_fraction")
    @classmethod
    def _pair_with_the_accelerations(
        cls, fraction: float | tuple[float, ...], info: ValidationInfo
    ) -> float | tuple[float, ...]:
        accelerations = info.data.get("acceleration", ())
        fractions = fraction if isinstance(fraction, tuple) else (fraction,)
        paired = len(fractions) == len(accelerations) == len(set(accelerations))
        if not all(0 < f < 1 for f in fractions) or (isinstance(fraction, tuple) and not paired):
            found = ", ".join(f"{f:g}" for f in fractions) or "none"
            raise ValueError(f"expected one number between 0 and 1, or one for each different R, found {found}")
        return fraction

    def fraction(self, acceleration: float) -> float:
        """The centre fraction that goes with R = `acceleration`.

        Raises ValueError where each R has its own and this one is not among them.
        """
        if isinstance(self.center_fraction, float):
            return self.center_fraction
        pairs = dict(zip(self.acceleration, self.center_fraction, strict=True))
        if acceleration not in pairs:
            known = ", ".join(f"{r:g}" for r in pairs)
            raise ValueError(f"no centre fraction is given for R = {acceleration:g}, only for {known}")
        return pairs[acceleration]


class Network(Settings):
    """The U-Net of mrgen.prior.unet."""

    widths: tuple[int, ...] = Field((64, 128, 192), min_length=1, description="channels of each level")
    blocks: int = Field(2, ge=1, description="residual blocks per level and direction")
    patch: int = Field(2, ge=1, description="pixel-unshuffle factor at the input")
    condition: bool = Field(False, description="whether it also sees a simple reconstruction of the scan")

    @field_validator("widths")
    @classmethod
    def _fill_the_groups(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if any(width <= 0 or width % GROUPS for width in widths):
            found = ", ".join(str(width) for width in widths)
            raise ValueError(
                f"expected positive multiples of {GROUPS} (the groups of the normalisation), found {found}"
            )
        return widths


class Training(Settings):
    """The loop of mrgen.prior.train."""

    objective: Literal["gsure", "ambient-tweedie", "ambient", "supervised"] = "gsure"
    basis: Literal["sense", "fourier"] = "sense"
    steps: int = Field(20_000, ge=1, description="updates")
    batch: int = Field(16, ge=1, description="slices per update, of all processes together")
    accumulate: int = Field(1, ge=1, description="parts in which a process computes its share of a batch")
    learning_rate: float = Field(2e-3, gt=0, description="peak, Adam")
    warmup: int = Field(200, ge=0, description="updates of linear warm-up")
    decay: float = Field(0.3, ge=0, le=1, description="last fraction of the updates, cosine decay to zero")
    ema: float = Field(0.05, gt=0, le=0.25, description="width (std) of the weight average, fraction of the updates")
    sigma_min: float = Field(0.01, gt=0, description="smallest noise level trained, units of the scaled image")
    sigma_max: float = Field(20.0, gt=0, description="largest noise level trained")
    sigma_median: float = Field(0.2, gt=0, description="median of the log-normal noise levels")
    sigma_spread: float = Field(1.5, gt=0, description="std of the logarithm of the noise level")
    sigma_data: float = Field(0.4, gt=0, description="rms of the scaled complex image inside the head")
    lambda_min: float = Field(0.01, gt=0, description="floor of lambda in the SENSE basis: keeps the solve short")
    lambda_max: float = Field(
        0.01, gt=0, description="ceiling of lambda in the SENSE basis: noise levels that need more are raised"
    )
    cg_iterations: int = Field(15, ge=1, description="CG iterations for a training input, SENSE basis")
    survival: float = Field(0.75, gt=0, le=1, description="Pr(a sampled line is in the input), objective `ambient`")
    seed: int = 0

    @field_validator("lambda_max")
    @classmethod
    def _leave_room_above_the_floor(cls, ceiling: float, info: ValidationInfo) -> float:
        if ceiling < info.data.get("lambda_min", 0):
            raise ValueError(f"expected lambda_min, {info.data['lambda_min']:g}, or more, found {ceiling:g}")
        return ceiling


class EM(Settings):
    """The rounds of mrgen.prior.em."""

    samples: int = Field(2, ge=1, description="posterior samples of each training slice in an E-step")
    recipe: str = Field("posterior", description="name of the recipe that draws them")
    updates: int = Field(2500, ge=1, description="of an M-step that goes on from the network before")
    relaxation: float = Field(1.0, ge=1, lt=2, description="eta of the M-step; 1 is plain EM")
    extrapolation: float = Field(0.0, ge=0, description="w of D + w (D - D_before), which draws from round 3 on")
    flow: Literal[0] | Annotated[int, Field(ge=2)] = Field(
        0, description="noise levels of the flow that samples go back by; 0: they are learned from as drawn"
    )
    quietest: float = Field(1.0, gt=0, le=1, description="share of the slices, those of least noise, to learn from")
    gate: float = Field(2.5, ge=0, description="samples serve noise levels above gate sqrt(R) sigma0; 0: all levels")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the lines outside the centre that is withheld")
    held_out_slices: int = Field(32, ge=2, description="slices that lines are withheld of")
    held_out_samples: int = Field(8, ge=3, description="posterior samples of each of those slices")


class Protocol(Settings):
    """How scans are acquired and a prior is trained for them."""

    description: str
    anatomy: str
    contrast: str = "any"
    coils: int | None = Field(None, ge=1, description="virtual coils at most for training; all coils without it")
    sampling: Sampling = Sampling()
    network: Network = Network()
    training: Training = Training()
    em: EM = EM()

    @field_validator("network")
    @classmethod
    def _leave_the_condition_to_em(cls, network: Network) -> Network:
        if network.condition:
            raise ValueError("condition is set by mrgen em --diffem alone: leave it out")
        return network


class Recipe(Settings):
    """How a scan is reconstructed."""

    description: str
    method: Literal["posterior", "gaussian", "zero-filled", "sense", "l1-wavelet", "tv", "pnp", "red"] = "posterior"
    guidance: Literal["proximal", "fourier", "mmps", "dps"] = "proximal"
    covariance: Literal["local", "residual", "spectral", "isotropic"] = Field("local", description="of x given x_t")
    zeta: float = Field(0.1, gt=0, description="step size of dps, scaled image units")
    sampler: Literal["ddim", "multistep", "heun", "ancestral", "decoupled"] = Field(
        "decoupled", validate_default=True, description="decoupled: with proximal and fourier only"
    )
    grid: Literal["karras", "log", "cosine"] = Field("karras", description="how the noise levels are spaced")
    steps: int = Field(20, ge=2, description="noise levels")
    samples: int = Field(8, ge=2, description="posterior samples per slice")
    antithetic: bool = Field(False, description="whether samples come in pairs whose noise has opposite signs")
    sigma_max: float = Field(5.0, gt=0, description="noise level where posterior and pnp start, scaled image units")
    sigma_max_sets: float | None = Field(
        None, gt=0, description="sigma_max of posterior with several sets of coil maps"
    )
    sigma_min: float = Field(0.05, gt=0, description="noise level where pnp ends and red stays, scaled image units")
    cg_iterations: int = Field(30, ge=1, description="per data step of proximal (at most), mmps, gaussian, pnp and red")
    cg_settled: float = Field(0.004, ge=0, description="relative change of an image at which CG of proximal ends")
    ensemble: int = Field(0, ge=0, description="masks that the denoiser is averaged over, 0: it sees all of k-space")
    regularisation: Annotated[float, Field(gt=0)] | Literal["held-out", "discrepancy"] = Field(
        0.01, description="lambda of sense, l1-wavelet, tv, pnp and red, or the rule that chooses it for each slice"
    )
    iterations: int = Field(60, ge=1, description="iterations of sense, l1-wavelet and tv; at most, of pnp and red")

    def highest(self, sets: int) -> float:
        """The noise level where the posterior's sampling starts with so many sets of coil maps."""
        return self.sigma_max if sets == 1 or self.sigma_max_sets is None else self.sigma_max_sets

    @property
    def draws(self) -> bool:
        """Whether it gives samples, and so a standard deviation."""
        return self.method in ("posterior", "gaussian")

    @property
    def learned(self) -> bool:
        """Whether it needs a prior."""
        return self.method in ("posterior", "pnp", "red")

    @field_validator("antithetic")
    @classmethod
    def _make_pairs(cls, antithetic: bool, info: ValidationInfo) -> bool:
        if antithetic and (odd := info.data.get("samples", 0)) % 2:
            raise ValueError(f"antithetic samples come in pairs: expected an even number of samples, found {odd}")
        return antithetic

    @field_validator("sampler")
    @classmethod
    def _take_draws_from_what_draws(cls, sampler: str, info: ValidationInfo) -> str:
        guidance = info.data.get("guidance")
        if sampler == "decoupled" and guidance in ("mmps", "dps"):
            raise ValueError(f"decoupled needs draws and guidance {guidance} gives means: take heun or another sampler")
        return sampler


Kind = TypeVar("Kind", Protocol, Recipe)
_FOLDERS = {Protocol: "protocols", Recipe: "recon"}


def settings_folder(kind: type[Settings]) -> Path:
    """The folder with the TOML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    name = _FOLDERS[kind]
    return next((p for p in (package / name, package.parent / name) if p.is_dir()), package / name)


def available(kind: type[Settings]) -> list[str]:
    """Names of the settings files that exist, sorted."""
    return sorted(p.stem for p in settings_folder(kind).glob("*.toml"))


def load(kind: type[Kind], name: str) -> Kind:
    """A protocol or recipe by its name, or by the path of a .toml file. Raises MrgenError."""
    path = Path(name) if name.endswith(".toml") else settings_folder(kind) / f"{name}.toml"
    label = kind.__name__.lower()
    if not path.is_file():
        raise MrgenError(f"unknown {label} {name!r}; there are: {', '.join(available(kind))}")
    try:
        return kind.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:  # TOML is UTF-8 by definition
        raise MrgenError(f"{label} {path.name} is not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise MrgenError(f"{label} {path.name}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
