from typing import Literal

import pytest
import torch

from training.learning.workshop import computed_in
from training.networks.autoencoder import build
from training.recipe import Network

CPU = torch.device("cpu")
SHAPE = (32, 32, 3)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_depthwise_convolutions_on_a_cpu_are_computed_in_fp32(precision: Literal["auto", "bf16"]) -> None:
    encoder = build(Network(backbone="efficientnet-lite0", weights=None), SHAPE).encoder
    assert computed_in(precision, CPU, encoder) == "fp32"


@pytest.mark.parametrize("network", [Network(width=4), Network(backbone="resnet18", weights=None)])
def test_other_networks_are_computed_in_bf16_where_the_cpu_has_it(network: Network) -> None:
    able = torch.cpu.get_capabilities()
    expected = "bf16" if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "fp32"
    encoder = build(network, SHAPE).encoder
    assert computed_in("auto", CPU, encoder) == computed_in("bf16", CPU, encoder) == expected
    assert computed_in("fp32", CPU, encoder) == "fp32"
