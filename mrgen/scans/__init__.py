"""The outside world coming in: readers of raw k-space, its preparation, simulation, and all validation of it."""
