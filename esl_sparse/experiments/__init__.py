"""Training runs with their baselines, record and reports; nothing else in the package needs this."""
