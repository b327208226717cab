"""Configurations as people could write them, and worse."""

import yaml

from daskspace.clusters.section import BACKEND_OF, RENAMED, defaults

VALUES = [
    *(None, True, False, 0, 1, 4, -3, 2.5, 43200, 10**30, float("nan"), float("inf")),
    *("", "4", "8 GB", "109GB", "12:00:00", "1-00:00:00", "$USER", "${X}", "x y", "ü\n"),
    *([], ["-C x"], ["--lifetime", "5m"], ["--lifetime"], [1, None], [["a"]]),
    *({}, {"-C casper": None}, {"a": 1}, {"interface": "ib0"}, {"minimum": 3, "maximum": "x"}),
]
NAMES = [
    *sorted({key for known in defaults().values() for key in known}),
    *RENAMED,
    *("worker-extra", "n_workers", "jobs", "distributed", "silence_logs", "type", "job_cpu"),
]
ROOTS = ["distributed", "scheduler", "logging", "admin", "daskspace", "mpi", "jobqeue", "array"]


def some_config(chance):
    """Return the text of a file."""
    system = chance.choice(list(BACKEND_OF))
    keys = {chance.choice(NAMES): chance.choice(VALUES) for _ in range(chance.randrange(12))}
    if chance.random() < 0.7:
        keys |= {"cores": 4, "memory": "8 GB"}
    config = chance.choice(
        [
            lambda: {"jobqueue": {system: keys}},
            lambda: {"jobqueue": {"mine": {"job-scheduling-system": system, **keys}}},
            lambda: (
                {"cluster_class": f"dask_jobqueue.{system.upper()}Cluster"}
                | {"cluster_kwargs": keys, "adapt_kwargs": chance.choice(VALUES)}
            ),
            lambda: {"here": {"cluster": {"type": system, **keys}, "distributed": keys}},
            lambda: {"cluster": {system: keys}},
            lambda: {"here": {system: keys}},
            lambda: {"labextension": {"factory": {"class": "LocalCluster", "kwargs": keys}}},
            lambda: {"jobqueue": chance.choice(VALUES)},
        ]
    )()
    for root in chance.sample(ROOTS, chance.randrange(3)):
        worker = {"memory": {"target": chance.choice(VALUES), "spill": chance.choice(VALUES)}}
        config[root] = chance.choice([chance.choice(VALUES), {"worker": worker}, {"retries": 1}])
    text = yaml.safe_dump(config, allow_unicode=True)
    if chance.random() < 0.3:
        at = chance.randrange(len(text))
        text = (
            text[:at]
            + chance.choice(["\t", ":", "{", "'", "\n", "*a", "&", "12:00:00"])
            + text[at:]
        )
    return text
