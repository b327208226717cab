"""Many Dask workers in one program: `python -m tests.benchmarks.many_workers ADDRESS NUMBER`."""

from __future__ import annotations

import asyncio
import sys
import tempfile

from distributed import Worker


async def serve(address: str, number: int, directory: str) -> None:
    """Run workers until nobody holds the other end of standard input."""
    workers = [
        Worker(
            address,
            nthreads=1,
            memory_limit=0,
            dashboard=False,
            host="127.0.0.1",
            local_directory=directory,
        )
        for _ in range(number)
    ]
    await asyncio.gather(*workers)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(worker.close(nanny=False) for worker in workers))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(serve(sys.argv[1], int(sys.argv[2]), directory))
