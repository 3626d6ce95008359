"""Coil compression: the strongest virtual coils, with noise that stays white."""

import pytest
import torch

from mrgen.physics.compression import compression_matrix


def low_rank(rank: int, coils: int = 8) -> torch.Tensor:
    g = torch.Generator().manual_seed(rank)
    mixing = torch.randn(coils, rank, dtype=torch.complex64, generator=g)
    return torch.einsum("cr,ryx->cyx", mixing, torch.randn(rank, 24, 20, dtype=torch.complex64, generator=g))


def test_what_spans_three_coils_is_kept_by_three() -> None:
    kspace = low_rank(3)
    matrix, kept = compression_matrix(kspace, coils=3)
    assert matrix.shape == (3, 8)
    assert kept == pytest.approx(1, abs=1e-5)
    back = torch.einsum("vc,vyx->cyx", matrix.conj(), torch.einsum("vc,cyx->vyx", matrix, kspace))
    torch.testing.assert_close(back, kspace, rtol=0, atol=1e-4)


def test_rows_are_orthonormal_so_noise_stays_white_and_energies_fall() -> None:
    kspace = low_rank(8)
    matrix, kept = compression_matrix(kspace, coils=5)
    torch.testing.assert_close(matrix @ matrix.mH, torch.eye(5) + 0j, rtol=0, atol=1e-5)
    energy = torch.einsum("vc,cyx->vyx", matrix, kspace).abs().square().sum((1, 2))
    assert bool((energy.diff() <= 0).all())
    assert kept == pytest.approx(float(energy.sum() / kspace.abs().square().sum()), rel=1e-4)


def test_the_smallest_number_that_keeps_the_energy_is_chosen() -> None:
    kspace = low_rank(8)
    matrix, kept = compression_matrix(kspace, energy=0.9)
    assert kept >= 0.9
    assert compression_matrix(kspace, coils=len(matrix) - 1)[1] < 0.9
    stacked = torch.stack([kspace, 2 * kspace])  # slices share one matrix
    assert compression_matrix(stacked, energy=0.9)[1] == pytest.approx(kept, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "not both or none"),
        ({"coils": 2, "energy": 0.5}, "not both or none"),
        ({"coils": 9}, "expected 1 to 8 virtual coils, found 9"),
        ({"energy": 1.5}, "above 0 and at most 1"),
    ],
)
def test_unusable_choices_are_refused(options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        compression_matrix(low_rank(2), **options)
