"""A stand-in for LoadLeveler: its commands and scheduler on one machine, stdlib only."""
