"""Every backend that the contract tests run over, with options that make it small."""

BACKENDS_UNDER_TEST = {
    "serial": {},
    "mcore": {"n_workers": 2},
}
