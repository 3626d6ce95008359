from __future__ import annotations

from mrgen.prior.files import bundled_prior, read_safetensors
from mrgen.review.card import prior_card


def test_the_bundled_prior_says_what_it_was_trained_on():
    card = prior_card(read_safetensors(bundled_prior())[1])
    assert card["Anatomy"] == "head"
    assert "simulated" in card["Trained on"]
    assert card["Undersampling in training"] == "R = 2, 3, 4, equispaced-any-offset"
    assert card["Noise levels"] == "0.004 to 80 of the scaled image"
    assert card["Objective"] == (
        "gsure-fourier, then 7 times supervised on posterior samples of the training scans (M-step of EM)"
    )


def test_what_a_prior_does_not_tell_is_left_out():
    assert prior_card({"objective": "gsure", "sigma_min": 0.1, "protocol": None}) == {"Objective": "gsure"}
