"""The parts of examples/prior_experiment.py."""
