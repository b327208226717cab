"""How one process is run, wherever it runs."""
