"""What the load suite measures, one module for each question; each adds what it found to a `Findings`."""
