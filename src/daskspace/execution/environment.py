"""The environment of programs that a rank of an MPI job starts."""

from __future__ import annotations

import re
from collections.abc import Mapping

_OF_A_RANK = re.compile(
    r"(PMI_|PMIX_|HYDI_|MPI_LOCAL|PRTE_(?!MCA_)|OMPI_(?!MCA_|ALLOW_RUN_AS_ROOT)"
    r"|OMPI_MCA_(ess|orte|pmix|initial_wdir|mpi_oversubscribe|shmem_RUNTIME))"
)


def without_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what makes a program a rank of the MPI job around it.

    A program that has it and uses MPI would join that job, or fail; without it, it can launch
    ranks of its own. Settings of the MPI library stay.
    """
    return {name: value for name, value in environment.items() if not _OF_A_RANK.match(name)}
