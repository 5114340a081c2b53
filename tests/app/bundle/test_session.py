import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import LATENT, tiny

from app.bundle.manifest import Graph, Graphs, Tensor
from app.bundle.session import CPU, GPU, Session, compiled_in, cpu_limit, external_data, prefer_gpu, started
from app.errors import ExternalData, GraphMismatch, ProviderMissing


@pytest.fixture(scope="module")
def graph() -> Graph:
    graphs = tiny()[0]["graphs"]
    assert isinstance(graphs, Graphs)
    return graphs.encoder


@pytest.fixture(scope="module")
def encoder() -> bytes:
    return tiny()[1]["encoder.onnx"]


def outside(model: bytes, location: str) -> bytes:
    """The same graph with its first weight said to lie in another file."""
    proto = onnx.load_from_string(model)
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return proto.SerializeToString()


def test_batch_of_n_equals_n_singles(encoder: bytes, graph: Graph) -> None:
    session = Session(encoder, graph, "tiny/1/encoder.onnx", threads=1)
    images = np.random.default_rng(0).integers(0, 256, (7, 6, 4, 1), dtype=np.uint8)
    together = session.run(images)["embedding"]
    assert together.shape == (7, LATENT)
    alone = np.concatenate([session.run(image[None])["embedding"] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("location", ["/etc/passwd", "../../weights.bin", "weights.bin"])
def test_weights_outside_the_graph_are_refused_by_name(encoder: bytes, graph: Graph, location: str) -> None:
    with pytest.raises(ExternalData, match=rf"^t/1/encoder\.onnx: weight 'into' lies outside .*'{location}'"):
        Session(outside(encoder, location), graph, "t/1/encoder.onnx", threads=1)


def test_external_weights_are_found_in_subgraphs_functions_and_attributes() -> None:
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="x")
    holder = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([holder], "branch", [], [])
    nested = helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=branch)
    sparse = onnx.SparseTensorProto(values=tensor)
    models = {
        "attribute": helper.make_model(helper.make_graph([holder], "g", [], [])),
        "subgraph": helper.make_model(helper.make_graph([nested], "g", [], [])),
        "function": helper.make_model(
            helper.make_graph([], "g", [], []),
            functions=[helper.make_function("d", "f", [], ["c"], [holder], [helper.make_opsetid("", 18)])],
        ),
        "sparse": helper.make_model(helper.make_graph([], "g", [], [], sparse_initializer=[sparse])),
    }
    for place, model in models.items():
        assert ("far", "x") in list(external_data(model.SerializeToString(), place)), place


def test_a_field_number_that_others_would_cut_short_hides_nothing(encoder: bytes, graph: Graph) -> None:
    """The tag of `graph` as a number of 33 bits: protobuf drops the highest, and would see the graph."""
    model = outside(encoder, "secret.bin")
    at = model.index(b"\x3a")  # field 7, length-delimited
    hidden = model[:at] + b"\xba\x80\x80\x80\x10" + model[at + 1 :]
    with pytest.raises(GraphMismatch, match="field key"):
        Session(hidden, graph, "t", threads=1)


def test_a_location_flag_of_too_many_bits_counts() -> None:
    far = b"\x42\x01w" + b"\x70\x81\x80\x80\x80\x10"  # name "w", data_location 2**32 + 1
    model = b"\x3a" + bytes([len(far) + 2]) + b"\x2a" + bytes([len(far)]) + far
    assert list(external_data(model, "t")) == [("w", "")]


def test_a_whole_graph_has_none(encoder: bytes) -> None:
    assert list(external_data(encoder, "t")) == []


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\xff" * 50, b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_no_graph_is_refused(graph: Graph, data: bytes) -> None:
    with pytest.raises(GraphMismatch, match=r"^t/1/encoder\.onnx: "):
        Session(data, graph, "t/1/encoder.onnx", threads=1)


def test_every_cut_of_a_graph_is_refused(encoder: bytes, graph: Graph) -> None:
    for end in range(0, len(encoder) - 1, 7):
        with pytest.raises(GraphMismatch):
            Session(encoder[:end], graph, "t", threads=1)


def test_a_graph_that_differs_from_the_manifest_is_refused(encoder: bytes, graph: Graph) -> None:
    other = Tensor(name="embedding", dtype="float32", shape=(-1, LATENT + 1))
    with pytest.raises(GraphMismatch, match="the manifest says"):
        Session(encoder, graph.model_copy(update={"outputs": (other,)}), "t", threads=1)


@pytest.mark.parametrize(
    ("quota", "limit"),
    [("max 100000", 4), ("50000 100000", 1), ("100000 100000", 1), ("150000 100000", 2), ("900000 100000", 4)],
)
def test_threads_follow_the_containers_quota(tmp_path: Path, quota: str, limit: int) -> None:
    group = tmp_path / "sys/fs/cgroup/graft"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text(quota)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/graft\n")
    (tmp_path / "proc/self/mountinfo").write_text("1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    assert cpu_limit(tmp_path, affinity=4) == limit


def test_a_session_says_what_it_runs_on(encoder: bytes, graph: Graph) -> None:
    assert Session(encoder, graph, "t", threads=1).provider == "CPUExecutionProvider"


@pytest.mark.skipif(GPU in compiled_in(), reason="this onnxruntime may have a GPU to run on: nothing falls back")
@pytest.mark.filterwarnings("ignore:Specified provider")  # which is all that onnxruntime says
def test_a_session_that_fell_back_is_refused_unless_the_cpu_will_do(encoder: bytes, graph: Graph) -> None:
    with pytest.raises(ProviderMissing, match=rf"^t/1/encoder\.onnx: .* fell back from {GPU} to CPUExecutionProvider"):
        Session(encoder, graph, "t/1/encoder.onnx", 1, providers=[GPU])
    assert Session(encoder, graph, "t", 1, providers=[GPU, *CPU]).provider == "CPUExecutionProvider"
    assert started([GPU]) == list(CPU)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize(
    ("compiled", "running", "chosen"),
    [((GPU, *CPU), (GPU, *CPU), (GPU, *CPU)), ((GPU, *CPU), CPU, CPU), (CPU, (GPU, *CPU), CPU)],
)
def test_a_gpu_is_preferred_where_it_is_compiled_in_and_starts(
    compiled: tuple[str, ...], running: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    assert prefer_gpu(lambda: compiled, lambda _: running) == chosen


def test_of_a_name_that_onnxruntime_never_heard_nothing_starts() -> None:
    assert started(["NoSuchExecutionProvider"]) == []


def test_sessions_that_open_side_by_side_leave_stdout_where_it_was() -> None:
    before = sys.stdout
    with ThreadPoolExecutor(8) as side_by_side:
        list(side_by_side.map(lambda _: (started((GPU, *CPU)), compiled_in()), range(200)))
    assert sys.stdout is before
