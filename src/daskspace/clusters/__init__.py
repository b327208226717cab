"""Dask cluster types, and parts of them, that the ecosystem lacks; useful without our backends."""
