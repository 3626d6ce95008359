"""Reconstruction: guidance, samplers, classical baselines and `reconstruct`."""
