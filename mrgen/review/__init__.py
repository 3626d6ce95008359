"""What a reader sees: metrics, figures and the files written."""
