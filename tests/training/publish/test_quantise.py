import numpy as np
import onnx
import pytest
import torch

from app.bundle.session import Session
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.measure import drawn_domains
from training.networks.autoencoder import build
from training.publish.onnx import export
from training.publish.quantise import compensated, quantised
from training.recipe import Input, Network


def test_a_published_network_keeps_its_embeddings_in_eight_bits() -> None:
    """Without its biases corrected the cosine is below 0.9, without weights that make up for each other below 0.97."""
    try:
        net = build(Network(backbone="efficientnet-lite0"), (64, 64, 3))
    except TrainingError as error:
        pytest.skip(f"{error}")
    net.encoder.eval()
    spec = Input(height=64, width=64, channels=3).spec()
    before = export(net, None, spec, decodes=False)
    images = np.concatenate(list(drawn_domains.drawn(spec.shape, 48).values()))
    after = quantised(before, ImageSet(images[::2], np.array([], np.int64), ()))
    floats, integers = (
        Session(each.files["encoder.onnx"], before.graphs.encoder, "encoder.onnx", 1).run(images[1::2], ["embedding"])
        for each in (before, after)
    )
    a, b = (each["embedding"] - floats["embedding"].mean(axis=0) for each in (floats, integers))
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.mean() > 0.98
    operators = {node.op_type for node in onnx.load_from_string(after.files["encoder.onnx"]).graph.node}
    assert not operators & {"Relu"}, "a ReLU is the range of what follows"
    assert after.graphs.encoder == before.graphs.encoder


def test_integers_give_nearly_what_floats_gave_and_the_tolerances_say_how_nearly() -> None:
    torch.manual_seed(0)
    spec = Input().spec()
    net = build(Network(width=8, latent=16), spec.shape)
    images = np.random.default_rng(0).integers(0, 256, (300, *spec.shape), dtype=np.uint8)
    net.encoder.train()
    with torch.no_grad():
        net.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)  # statistics of its normalisation
    before = export(net, torch.nn.Linear(net.pool.size, 3), spec, reads="features")
    after = quantised(before, ImageSet(images, np.array([], np.int64), ()))

    operators = {node.op_type for node in onnx.load_from_string(after.files["encoder.onnx"]).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    weights = [w for w in onnx.load_from_string(after.files["encoder.onnx"]).graph.initializer if w.data_type == 3]
    assert weights, "there are weights of eight bits"
    assert max(np.abs(onnx.numpy_helper.to_array(w).astype(int)).max() for w in weights) <= 64, "reduced to seven"
    assert set(after.tolerances) == {"embedding", "features", "reconstruction", "logits", "evidence"}
    assert all(0.01 <= tolerance <= 0.05 for tolerance in after.tolerances.values())
    assert after.files["head.onnx"] == before.files["head.onnx"]

    fresh = np.random.default_rng(1).integers(0, 256, (20, *spec.shape), dtype=np.uint8)
    graph = before.graphs.encoder
    floats, integers = (
        Session(each.files["encoder.onnx"], graph, "encoder.onnx", 1).run(fresh) for each in (before, after)
    )
    for name, exact in floats.items():
        correlation = np.corrcoef(exact.ravel(), integers[name].ravel())[0, 1]
        assert correlation > 0.98, name
        assert not np.array_equal(exact, integers[name])


def test_rounding_errors_of_inputs_that_vary_together_make_up_for_each_other() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2000, 3)) @ rng.normal(size=(3, 24)) + 0.1 * rng.normal(size=(2000, 24))
    weight = rng.normal(size=(8, 24))
    step = np.abs(weight).max(axis=1) / 7
    rounded = compensated(weight, inputs.T @ inputs, step, 7)
    levels = rounded / step[:, None]
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-9)
    assert np.abs(np.round(levels)).max() <= 7
    nearest = np.round(weight / step[:, None]) * step[:, None]
    lost, usual = (np.square(inputs @ (each - weight).T).sum() for each in (rounded, nearest))
    assert lost < 0.2 * usual


def test_inputs_that_vary_alone_round_to_the_nearest() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 6))
    step = np.abs(weight).max(axis=1) / 64
    rounded = compensated(weight, np.diag(np.arange(1.0, 7.0)), step, 64)
    np.testing.assert_allclose(rounded, np.round(weight / step[:, None]) * step[:, None])
