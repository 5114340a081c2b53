"""A model's metadata, configuration and statistics, in the form that the protocol's clients and Triton's tools read."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from app.api.v2.schemas import IndexEntry, ModelMetadata, TensorMetadata
from app.api.v2.tensors import IMAGE, IMAGE_TYPE, outputs_of
from app.api.v2.wire import BYTES
from app.bundle.bundle import Bundle
from app.inference.repository import Repository
from app.telemetry.metrics import Sample

PLATFORM = "onnx_onnxv1"


def metadata(bundle: Bundle, versions: Sequence[int]) -> ModelMetadata:
    image = (
        TensorMetadata(name=IMAGE, datatype=BYTES, shape=[-1])
        if bundle.tiled
        else TensorMetadata(name=IMAGE, datatype=IMAGE_TYPE, shape=[-1, *bundle.manifest.input.shape])
    )
    outputs = [
        TensorMetadata(name=name, datatype=output.datatype, shape=[-1, *output.shape])
        for name, output in outputs_of(bundle).items()
    ]
    return ModelMetadata(
        name=bundle.name, versions=[str(v) for v in versions], platform=PLATFORM, inputs=[image], outputs=outputs
    )


def versions(repository: Repository, name: str) -> list[int]:
    """Those of a model that are loaded."""
    return [model.bundle.version for model in repository.all() if model.bundle.name == name]


def index(repository: Repository, ready_only: bool) -> list[IndexEntry]:
    return [
        IndexEntry(name=each.name, version=str(each.version), state=each.state, reason=each.reason)
        for each in repository.index()
        if each.state == "READY" or not ready_only
    ]


def configuration(bundle: Bundle, most: int) -> dict[str, Any]:
    """`most` is the number of images allowed in one request."""
    tensors = metadata(bundle, ())
    return {
        "name": bundle.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": most,
        "input": [_configuration(tensor) for tensor in tensors.inputs],
        "output": [_configuration(tensor) for tensor in tensors.outputs],
        "dynamic_batching": {},
    }


def _configuration(tensor: TensorMetadata) -> dict[str, Any]:
    datatype = "STRING" if tensor.datatype == BYTES else tensor.datatype  # as Triton calls it there
    return {"name": tensor.name, "data_type": f"TYPE_{datatype}", "dims": tensor.shape[1:]}


def statistics(bundle: Bundle, samples: Iterable[Sample]) -> dict[str, Any]:
    """From the metrics, so that several workers answer as one. A run's time is divided among its requests."""
    sums = defaultdict[str, float](float)
    for sample in samples:
        failed = sample.labels.get("outcome") == "failure" or sample.labels.get("status", "200") >= "400"
        sums[f"{sample.name} failed" if failed else sample.name] += sample.value

    def duration(count: str, seconds: str) -> dict[str, int]:
        return {"count": round(sums[count]), "ns": round(1e9 * sums[seconds])}

    none = {"count": 0, "ns": 0}
    return {
        "name": bundle.name,
        "version": str(bundle.version),
        "inference_count": round(sums["graft_batch_images_sum"]),
        "execution_count": round(sums["graft_run_seconds_count"]),
        "inference_stats": {
            "success": duration("graft_requests_total", "graft_model_seconds_total"),
            "fail": duration("graft_requests_total failed", "graft_model_seconds_total failed"),
            "queue": duration("graft_queue_seconds_count", "graft_queue_seconds_sum"),
            "compute_input": duration("graft_decode_seconds_count", "graft_decode_seconds_sum"),
            "compute_infer": duration("graft_queue_seconds_count", "graft_run_seconds_sum"),
            "compute_output": none,
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [],
    }
