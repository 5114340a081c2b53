import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training import recipe
from training.data.imageset import ImageSet
from training.learning.distributed import synchronise
from training.learning.normalisation import recompute_statistics
from training.learning.workshop import Workshop, open_workshop

IMAGES = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 1), np.uint8)
DATA = ImageSet(IMAGES, np.array([], np.int64), ())


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    changes = ["network.kind=conv", "network.width=4", "network.latent=8"]
    return open_workshop(recipe.load("seed", changes), (16, 16, 1), tmp_path, untrained=True)


def settled(workshop: Workshop) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    recompute_statistics(workshop, DATA)
    return {name: value.clone() for name, value in workshop.net.encoder.state_dict().items() if "running" in name}


@pytest.mark.parametrize("synchronised", [False, True])
def test_the_first_norm_takes_the_statistics_of_the_images(synchronised: bool, workshop: Workshop) -> None:
    """Whatever they were before, and of norms as several GPUs have them too."""
    if synchronised:
        synchronise(workshop.net.encoder)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in workshop.net.encoder.modules())
    before = {
        name: module.momentum for name, module in workshop.net.encoder.named_modules() if hasattr(module, "momentum")
    }
    first = workshop.net.encoder.get_submodule("stages.0.0.first")
    with torch.no_grad():
        expected = first(workshop.unit(IMAGES)).mean((0, 2, 3))
        for name, value in workshop.net.encoder.named_buffers():
            if "running_mean" in name:
                value.fill_(100)
    found = settled(workshop)
    torch.testing.assert_close(found["stages.0.0.first_norm.running_mean"], expected, rtol=1e-3, atol=1e-4)
    after = {
        name: module.momentum for name, module in workshop.net.encoder.named_modules() if hasattr(module, "momentum")
    }
    assert before == after
    assert set(after.values()) == {0.1}


@pytest.mark.parametrize("kind", ["backbone=resnet18", "kind=conv"])
def test_norms_that_are_synchronised_are_those_that_the_network_calls(kind: str, tmp_path: Path) -> None:
    """Blocks are converted with what learns beside them; ResNet's stem is a list of modules made for the occasion."""
    changes = [f"network.{kind}", "network.width=4", "transfer.mode=scratch"]
    net = open_workshop(recipe.load("seed", changes), (32, 32, 3), tmp_path, untrained=True).net
    synchronise(net.encoder)
    blocks = nn.ModuleList([*net.blocks().values(), nn.BatchNorm1d(4)])
    synchronise(blocks)
    norms = {id(module) for module in net.encoder.modules() if isinstance(module, nn.SyncBatchNorm)}
    assert norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.encoder.modules())
    in_blocks = {id(module) for module in blocks[:-1].modules() if isinstance(module, nn.SyncBatchNorm)}
    assert in_blocks == norms
    assert isinstance(blocks[-1], nn.SyncBatchNorm)


RANK = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
from test_normalisation import DATA
from training import recipe
from training.learning.normalisation import recompute_statistics
from training.learning.workshop import open_workshop
changes = ["network.kind=conv", "network.width=4", "network.latent=8"]
workshop = open_workshop(recipe.load("seed", changes), (16, 16, 1), folder / str(rank), untrained=True)
torch.manual_seed(rank)  # as after an epoch, in which each has drawn for itself
recompute_statistics(workshop, DATA.take(range(150)))
dist.barrier()
state = workshop.net.encoder.state_dict()
print(json.dumps([value.tolist() for name, value in state.items() if "running" in name]))
"""


def test_ranks_that_draw_other_images_settle_on_the_same_statistics(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), *sys.path]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}" + RANK, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes]
    assert found[0] == found[1]
