"""Learning: the denoiser, the objectives, the training loop, and prior files."""
