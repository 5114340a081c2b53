"""Two ranks that train together without torchrun, forked from a process that has imported torch once.

torchrun and the processes that it starts would each import it: ten seconds of CPU for runs that take two.
"""

import multiprocessing
import os
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["training.learning.stages", "training.commands", __name__])


def train(arguments: list[str], folder: Path) -> tuple[list[int | None], str]:
    """The exit codes of both ranks of `graft-train` with these arguments, and what they wrote to standard error."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    said = folder / "said"
    said.write_bytes(b"")
    ranks = [_CONTEXT.Process(target=_rank, args=(rank, store.port, said, arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks], said.read_text()


def _rank(rank: int, port: int, said: Path, arguments: list[str]) -> None:
    """What torchrun sets, then the command."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    from training.__main__ import main

    sys.exit(main(arguments))
