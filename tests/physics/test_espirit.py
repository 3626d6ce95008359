"""ESPIRiT maps against known maps, against the definition, sigpy and BART, on simulated and on measured scans."""

import importlib.util
import math
import shutil
from functools import cache
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import sigpy.mri
import torch
from torch import Tensor

from mrgen.physics import espirit
from mrgen.physics.espirit import espirit_maps
from mrgen.physics.fourier import centre_crop, fft2c, ifft2c
from mrgen.physics.noise import background_covariance, whiten, whitening_matrix
from mrgen.physics.operators import CoilSets

COILS, SHAPE, SIGMA = 8, (64, 56), 0.01
EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD, BENCHMARK = EXAMPLES / "data/brain.h5", EXAMPLES / "benchmark_espirit.py"


@cache
def simulated(sigma: float = SIGMA) -> tuple[Tensor, Tensor, Tensor]:
    """k-space (coil, y, x) with noise `sigma`, the true maps, and the object's support (y, x)."""
    maps = torch.as_tensor(sigpy.mri.birdcage_maps((COILS, *SHAPE))).to(torch.complex128)
    maps = maps / maps.norm(dim=0)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=torch.float64) for n in SHAPE], indexing="ij")
    body = (y / 0.75) ** 2 + (x / 0.6) ** 2 < 1
    texture = 0.7 + 0.2 * torch.cos(9 * y) * torch.sin(7 * x + 1) - 0.3 * ((y - 0.2) ** 2 + x**2 < 0.05)
    image = body * texture * torch.exp(1j * (0.8 * y - 0.5 * x))
    kspace = fft2c(maps * image) + sigma * complex_normal(COILS, *SHAPE)
    return kspace.to(torch.complex64), maps.to(torch.complex64), body


def complex_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def sigpy_maps(kspace: Tensor, width: int) -> Tensor:
    app = sigpy.mri.app.EspiritCalib(
        kspace.numpy(), calib_width=width, thresh=0.02, kernel_width=6, crop=0, show_pbar=False
    )
    return torch.as_tensor(app.run())


def disagreement(a: Tensor, b: Tensor) -> Tensor:
    """1 - |<a, b>| per pixel: the phase of a pixel's maps is arbitrary."""
    return 1 - (a.conj() * b).sum(-3).abs()


def ours(kspace: Tensor, sigma: float = SIGMA, width: int = 24, least_snr: float = 3.0) -> tuple[Tensor, Tensor]:
    acs = centre_crop(kspace, (width, width))[None]
    maps, eigenvalue = espirit_maps(acs, tuple(kspace.shape[-2:]), sigma, least_snr=least_snr)
    return maps[0], eigenvalue[0]


@pytest.mark.parametrize("sigma", [0.002, 0.01, 0.05, 0.1])
def test_at_least_as_close_to_the_truth_as_sigpy_at_every_noise_level(sigma: float) -> None:
    kspace, truth, body = simulated(sigma)
    error = disagreement(ours(kspace, sigma)[0], truth)[body]
    sigpys = disagreement(sigpy_maps(kspace, 24), truth)[body]
    assert float(error.mean()) < 1.1 * float(sigpys.mean()) + 1e-6
    assert float(error.quantile(0.99)) < 1.1 * float(sigpys.quantile(0.99)) + 1e-5
    assert float(error.mean()) < 0.1 * sigma**2 * COILS


@pytest.mark.parametrize("sets", [1, 2])
def test_maps_are_the_eigenvectors_of_the_definition(sets: int) -> None:
    """G(r) from the calibration matrix, its singular vectors and plane waves, pixel by pixel in numpy."""
    kspace, _, _ = simulated(0.05)
    acs, kernel, sigma = centre_crop(kspace, (16, 12)), 5, 0.05
    found, eigenvalue = espirit_maps(acs[None], SHAPE, sigma, sets=sets, kernel=kernel, least_snr=0)
    a = acs.numpy().astype(complex)
    rows = [
        a[:, y : y + kernel, x : x + kernel].ravel() for y in range(16 - kernel + 1) for x in range(12 - kernel + 1)
    ]
    matrix = np.array(rows).conj()
    _, values, vectors = np.linalg.svd(matrix, full_matrices=False)
    edge = sigma * (np.sqrt(len(matrix)) + np.sqrt(matrix.shape[1]))
    weights = (1 - len(matrix) * sigma**2 / values**2) * (values > edge)
    assert 5 < (values > edge).sum() < len(values) - 5
    for y, x in ((0, 0), (10, 40), (32, 28), (33, 17), (63, 55)):
        k_y, k_x = np.meshgrid(np.arange(kernel), np.arange(kernel), indexing="ij")
        wave = np.exp(-2j * np.pi * (k_y * (y - SHAPE[0] // 2) / SHAPE[0] + k_x * (x - SHAPE[1] // 2) / SHAPE[1]))
        plane = np.kron(np.eye(COILS), wave.reshape(-1, 1)) / kernel  # h = plane @ c
        local = vectors.conj() @ plane.conj()  # <v_i, h>, as rows of A are h^T
        g = local.conj().T @ (weights[:, None] * local)
        expected, directions = np.linalg.eigh(g.conj())
        np.testing.assert_allclose(eigenvalue[0, :, y, x], expected[::-1][:sets], atol=1e-5)
        for i in range(sets):
            assert abs(np.vdot(directions[:, -1 - i], found[0, i, :, y, x].numpy())) > 1 - 1e-4


def test_power_iteration_and_exact_eigenvectors_agree_in_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    kspace, _, _ = simulated()
    iterated, eigenvalue = ours(kspace, least_snr=0)
    monkeypatch.setitem(espirit._ENTRIES, "cpu", 3 * COILS**2 * SHAPE[1])
    exact, values = espirit_maps(centre_crop(kspace, (24, 24))[None], SHAPE, SIGMA, sets=1, least_snr=0)
    torch.testing.assert_close(eigenvalue, values[0, 0], atol=1e-5, rtol=0)
    assert float(disagreement(iterated, exact[0, 0]).max()) < 1e-5
    two, _ = espirit_maps(centre_crop(kspace, (24, 24))[None], SHAPE, SIGMA, sets=2, least_snr=0)
    assert float(disagreement(iterated, two[0, 0]).max()) < 1e-5


def vortices(maps: Tensor, inside: Tensor) -> int:
    """Pixels of (y, x) around which the phase of (coil, y, x) turns by 2 pi, from neighbour to neighbour."""
    corners = [(slice(a, a - 1 or None), slice(b, b - 1 or None)) for a, b in ((0, 0), (0, 1), (1, 1), (1, 0))]
    around = zip(corners, corners[1:] + corners[:1], strict=True)
    steps = [(maps[:, *a].conj() * maps[:, *b]).sum(0).angle() for a, b in around]
    turns = (torch.stack(steps).sum(0) / (2 * math.pi)).round().abs()
    return int((turns * torch.stack([inside[c] for c in corners]).all(0)).sum())


def turned_to_the_dominant_virtual_coil(maps: Tensor, acs: Tensor) -> Tensor:
    coil = torch.linalg.svd(acs.flatten(1), full_matrices=False)[0][:, 0]
    return maps * torch.exp(-1j * torch.einsum("c,cyx->yx", coil.conj(), maps).angle())


def test_maps_have_unit_norm_and_are_smooth() -> None:
    kspace, _, body = simulated()
    maps, _ = ours(kspace, least_snr=0)
    torch.testing.assert_close(maps.norm(dim=0), torch.ones(SHAPE))
    inside = body[1:] & body[:-1]
    assert float((maps[:, 1:] - maps[:, :-1]).norm(dim=0)[inside].max()) < 0.08


def test_the_phase_is_that_of_a_coil_that_sees_the_whole_object() -> None:
    # The first coil sees most of a disc, but is blind at a point inside, and its phase turns around it. The second is
    # weaker and sees everything.
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=torch.float64) for n in SHAPE], indexing="ij")
    coils = torch.stack([2 * torch.complex(x - 0.1, y + 0.05), 0.6 + 0j * x, 0.3 * torch.exp(1j * x) * x])
    disc = y**2 + x**2 < 0.6
    clean = fft2c(coils * disc * (1 + 0.5 * torch.cos(9 * y)))
    kspace = (clean + 0.005 * complex_normal(*clean.shape)).to(torch.complex64)
    maps, _ = ours(kspace, 0.005)
    sets, _ = espirit_maps(centre_crop(kspace, (24, 24))[None], SHAPE, 0.005, sets=2)
    other = turned_to_the_dominant_virtual_coil(maps, centre_crop(kspace, (24, 24)))
    image = ifft2c(clean)

    def combined(by: Tensor) -> Tensor:
        return (by.conj() * image).sum(0, keepdim=True)

    assert vortices(combined(other), disc) == 1, "else this test would show nothing"
    assert vortices(combined(maps), disc) == vortices(maps, disc) == vortices(sets[0, 0], disc) == 0
    torch.testing.assert_close(maps[1], maps[1].abs() + 0j, atol=1e-6, rtol=0)
    assert float(combined(maps)[0, disc].angle().abs().max()) < 0.05  # a real coil: the image has its own phase


@pytest.mark.parametrize(("sigma", "cut"), [(0.01, 0.3), (0.05, 0.5), (0.1, 0.6)])
@pytest.mark.parametrize("size", [(24, 24), (48, 24), (48, 9)])
def test_the_support_leaves_out_the_background_and_nothing_of_the_object(
    size: tuple[int, int], sigma: float, cut: float
) -> None:
    kspace, _, body = simulated(sigma)
    maps, eigenvalue = espirit_maps(centre_crop(kspace, size)[None], SHAPE, sigma)
    support = maps[0].norm(dim=0)
    torch.testing.assert_close(support, (eigenvalue[0] >= 1 - 1 / 9).float())
    assert float(1 - support[body].mean()) < 1e-3
    assert float(1 - support[~body].mean()) > cut
    wider, _ = espirit_maps(centre_crop(kspace, size)[None], SHAPE, sigma, least_snr=2)
    assert bool((wider[0].norm(dim=0) > support - 1e-5).all())


def test_dark_tissue_that_the_object_encloses_keeps_its_maps() -> None:
    """A ring of signal with next to nothing inside: below the bound there, and yet not beside the object."""
    _, truth, body = simulated()
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    middle = (y / 0.45) ** 2 + (x / 0.36) ** 2 < 1
    image = torch.where(middle, 0.002, body.double())
    kspace = (fft2c(truth.to(torch.complex128) * image) + 0.05 * complex_normal(COILS, *SHAPE)).to(torch.complex64)
    (maps, eigenvalue), (everywhere, _) = ours(kspace, 0.05), ours(kspace, 0.05, least_snr=0)
    below = middle & (eigenvalue < 1 - 1 / 3**2)
    assert below.sum() > 20
    norm = maps.norm(dim=0)
    torch.testing.assert_close(norm[middle], torch.ones(int(middle.sum())))
    assert float(disagreement(maps, everywhere)[below].max()) < 1e-3  # the same eigenvectors
    assert float((norm[~body] == 0).float().mean()) > 0.4


@pytest.mark.parametrize("snr", [0.5, 2.0, 5.0, 20.0])
def test_the_eigenvalue_tells_the_signal_to_noise_ratio(snr: float) -> None:
    # An object of independent pixels of that SNR in half of the image. Coil maps that vary within the kernel's
    # resolution share its power among more directions than one, so the estimate is on the low side.
    n = 96
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=torch.float64)] * 2, indexing="ij")
    angle = torch.arange(6, dtype=torch.float64)[:, None, None]
    maps = torch.exp(-(((y - 2 * torch.cos(angle)) ** 2 + (x - 2 * torch.sin(angle)) ** 2) / 4))
    image = snr * complex_normal(n, n) * (x < 0)
    kspace = fft2c(maps / maps.norm(dim=0) * image) + complex_normal(6, n, n, seed=1)
    _, eigenvalue = espirit_maps(centre_crop(kspace, (48, 48))[None].to(torch.complex64), (n, n), 1.0)
    found = (1 - eigenvalue[0]).rsqrt()
    assert float(found[16:-16, -32:-8].median()) < 1.5
    assert 0.7 * snr < float(found[16:-16, 16:40].median()) < 1.3 * (1 + snr**2) ** 0.5


def folded() -> tuple[Tensor, Tensor, Tensor]:
    """k-space of an object twice as wide as the field of view, both maps (2, coil, y, x), and where they overlap."""
    n_y, n_x = SHAPE
    maps = torch.as_tensor(sigpy.mri.birdcage_maps((COILS, n_y, 2 * n_x))).to(torch.complex128)
    y, x = torch.meshgrid(torch.linspace(-1, 1, n_y), torch.linspace(-1, 1, 2 * n_x), indexing="ij")
    body = ((y / 0.75) ** 2 + (x / 0.7) ** 2 < 1).double()
    texture = 0.7 + 0.2 * torch.cos(9 * y) * torch.sin(17 * x + 1)
    wide = torch.roll(maps * body * texture, n_x // 2, dims=-1)
    pair = wide[..., :n_x] + wide[..., n_x:]
    places = torch.roll(maps / maps.norm(dim=0), n_x // 2, dims=-1).unflatten(-1, (2, n_x)).permute(2, 0, 1, 3)
    where = torch.roll(body, n_x // 2, dims=-1).unflatten(-1, (2, n_x)).permute(1, 0, 2)
    kspace = fft2c(torch.roll(pair, n_x // 2, dims=-1)) + 0.005 * complex_normal(COILS, n_y, n_x)
    shift = {"shifts": n_x // 2, "dims": -1}
    return kspace.to(torch.complex64), torch.roll(places, **shift).to(torch.complex64), torch.roll(where, **shift) > 0


def test_two_sets_span_the_two_places_that_share_a_pixel() -> None:
    kspace, truth, where = folded()
    both, single = where.all(0), where.any(0) & ~where.all(0)
    assert both.float().mean() > 0.05
    maps, eigenvalue = espirit_maps(centre_crop(kspace, (24, 24))[None], SHAPE, 0.005, sets=2)
    maps, eigenvalue = maps[0], eigenvalue[0]
    overlap = torch.einsum("acyx,bcyx->abyx", maps.conj(), maps)[..., both]
    torch.testing.assert_close(overlap, torch.eye(2)[..., None].expand_as(overlap) + 0j, atol=1e-4, rtol=0)
    for place in truth:
        explained = torch.einsum("scyx,cyx->syx", maps.conj(), place).abs().square().sum(0)
        assert float(explained[both].mean()) > 0.999
        assert float(torch.einsum("cyx,cyx->yx", maps[0].conj(), place).abs().square()[both].mean()) < 0.95
    assert bool((eigenvalue[0] >= eigenvalue[1] - 1e-6).all())
    assert float(eigenvalue[1][both].min()) > 0.9
    assert float((maps[1].norm(dim=0) == 0)[single].float().mean()) > 0.3, "the second set is needed near the fold only"


def test_two_sets_of_maps_leave_nothing_but_noise_of_a_wrapped_object_and_one_leaves_more() -> None:
    kspace, _, _ = folded()
    image, left = ifft2c(kspace), {}
    for sets in (1, 2):
        operator = CoilSets(
            espirit_maps(centre_crop(kspace, (24, 24))[None], SHAPE, 0.005, sets=sets, least_snr=0)[0][0]
        )
        left[sets] = float((image - operator.forward(operator.adjoint(image))).square().abs().mean().sqrt()) / 0.005
    assert left[2] == pytest.approx(((COILS - 2) / COILS) ** 0.5, rel=0.1)
    assert left[1] > 2


def test_maps_explain_the_coil_images() -> None:
    kspace, _, body = simulated()
    images, (maps, _) = ifft2c(kspace), ours(kspace)
    rest = images - maps * (maps.conj() * images).sum(0)
    # COILS - 1 of the noise's dimensions lie outside the maps
    assert float(rest[:, body].norm(dim=0).square().mean().sqrt()) < 1.3 * SIGMA * (COILS - 1) ** 0.5
    assert float((images - maps.conj() * (maps * images).sum(0))[:, body].norm()) > 5 * float(rest[:, body].norm())


def test_a_batch_is_its_items() -> None:
    kspace, _, _ = simulated()
    acs = torch.stack([centre_crop(kspace, (20, 16)), 3 * centre_crop(kspace, (20, 16)).flip(0).conj()])
    maps, eigenvalue = espirit_maps(acs, SHAPE, SIGMA)
    for i in range(2):
        alone, value = espirit_maps(acs[i : i + 1], SHAPE, SIGMA)
        torch.testing.assert_close(maps[i], alone[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(eigenvalue[i], value[0], atol=1e-4, rtol=0)


def test_few_lines_still_give_maps() -> None:
    # 4 % of 224 lines are 9: the kernel shrinks, the error grows but stays small (8e-5).
    kspace, truth, body = simulated()
    maps, _ = espirit_maps(centre_crop(kspace, (48, 9))[None], SHAPE, SIGMA)
    assert float(disagreement(maps[0], truth)[body].mean()) < 1e-3


def test_pure_noise_has_no_support_but_finite_maps() -> None:
    noise = complex_normal(1, COILS, 24, 24, seed=1).to(torch.complex64)
    assert espirit_maps(noise, SHAPE, 1.0)[0].abs().max() == 0
    maps, _ = espirit_maps(noise, SHAPE, 1.0, least_snr=0)
    torch.testing.assert_close(maps.norm(dim=1), torch.ones(1, *SHAPE))


@pytest.mark.parametrize("size", [(3, 24), (24, 3), (2, 2)])
def test_a_region_too_small_is_refused(size: tuple[int, int]) -> None:
    acs = torch.ones(1, COILS, *size, dtype=torch.complex64)
    with pytest.raises(ValueError, match=rf"at least 4 x 4 calibration samples, found {size[0]} x {size[1]}"):
        espirit_maps(acs, SHAPE, SIGMA)


@pytest.mark.parametrize("sets", [0, COILS + 1])
def test_sets_are_at_most_as_many_as_coils(sets: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to {COILS} sets of maps, .*found {sets}"):
        espirit_maps(torch.ones(1, COILS, 24, 24, dtype=torch.complex64), SHAPE, 1.0, sets=sets)


@cache
def head() -> tuple[Tensor, Tensor]:
    """Whitened k-space (coil, y, x) of a measured head, and where it is (y, x)."""
    with h5py.File(HEAD) as file:
        kspace = torch.as_tensor(np.asarray(file["kspace"][0]))
    kspace = whiten(kspace, whitening_matrix(background_covariance(kspace)))
    rss = ifft2c(kspace).norm(dim=0)
    return kspace, rss > 0.1 * rss.quantile(0.99)


def test_agrees_with_sigpy_on_a_measured_head() -> None:
    kspace, body = head()
    assert float(disagreement(ours(kspace, 1.0)[0], sigpy_maps(kspace, 24))[body].mean()) < 1e-3


def test_no_vortex_in_a_measured_head() -> None:
    kspace, body = head()
    maps, _ = ours(kspace, 1.0)
    inside = body & (maps.norm(dim=0) > 0)
    assert vortices(maps, inside) == 0
    assert vortices(turned_to_the_dominant_virtual_coil(maps, centre_crop(kspace, (24, 24))), inside) > 0


@pytest.mark.skipif(shutil.which("bart") is None, reason="BART (the Debian package bart) is not installed")
def test_closer_to_the_truth_than_bart() -> None:
    module = benchmark()
    module.COILS, module.SHAPE = 8, (160, 144)
    kspace, truth, head = module.scan(0.02)
    barts = module.mean_error(module.bart_maps(kspace), truth, head)
    assert barts < 1e-3, "or the files were exchanged wrongly"
    assert module.mean_error(ours(kspace, 0.02)[0], truth, head) <= barts


def benchmark() -> ModuleType:
    """examples/benchmark_espirit.py"""
    spec = importlib.util.spec_from_file_location("benchmark_espirit", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(shutil.which("bart") is None, reason="BART (the Debian package bart) is not installed")
def test_the_benchmark_beside_bart_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    module = benchmark()
    module.COILS, module.SHAPE, module.REPETITIONS, module.STDS = 6, (64, 48), 1, (0.02,)
    module.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| 0")]
    assert [row[1].strip() for row in rows] == ["mrgen", *(f"`bart ecalib -m 1 -c 0 -r 24{w}`" for w in ("", " -W"))]
    assert all(0 < float(row[2]) < 0.05 for row in rows)
    assert float(rows[0][4]) == 1


def test_the_benchmark_says_that_bart_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="error: BART is not installed"):
        benchmark().main()
