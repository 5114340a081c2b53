"""inference.proto as it is read: as protoc reads it, and as the clients have it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="`make install-grpc` installs it")

from google.protobuf import descriptor_pb2

from app.api.rpc.messages import FILE, POOL, message, read_proto

CLIENTS = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-clients") / "bin/python"
PROTOC = "import sys; from grpc_tools import protoc; sys.exit(protoc.main(sys.argv))"
OF_TRITON = """
import sys
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2
found = descriptor_pb2.FileDescriptorSet()
for module in (service_pb2, model_config_pb2):
    module.DESCRIPTOR.CopyToProto(found.file.add())
sys.stdout.buffer.write(found.SerializeToString())
"""


def of_clients(*command: str) -> bytes:
    if not CLIENTS.exists():
        pytest.skip("`make clients` installs protoc and the clients")
    return subprocess.run([str(CLIENTS), "-c", *command], capture_output=True, check=True).stdout


def fields(messages: Any, scope: str = "") -> dict[str, tuple[Any, ...]]:
    """Full name → number, type, label and kind."""
    found = {}
    for each in messages:
        name = f"{scope}.{each.name}"
        found |= {f"{name}.{f.name}": (f.number, f.type, f.label, f.type_name) for f in each.field}
        found |= fields(each.nested_type, name)
    return found


def methods(file: Any) -> dict[str, tuple[Any, ...]]:
    [service] = file.service
    return {
        each.name: (each.input_type, each.output_type, each.client_streaming, each.server_streaming)
        for each in service.method
    }


def enums(file: Any) -> dict[str, int]:
    return {value.name: value.number for enum in file.enum_type for value in enum.value}


def test_it_is_read_as_protoc_reads_it(tmp_path: Path) -> None:
    target = tmp_path / "set"
    of_clients(PROTOC, f"-I{FILE.parent}", f"--descriptor_set_out={target}", FILE.name)
    [expected] = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    found = read_proto(FILE.read_text(), FILE.name)
    assert fields(found.message_type) == fields(expected.message_type)
    assert methods(found) == methods(expected)
    assert enums(found) == enums(expected)
    assert (found.package, found.syntax) == (expected.package, expected.syntax)
    oneofs = [[f.oneof_index for f in each.field if f.HasField("oneof_index")] for each in found.message_type]
    assert oneofs == [
        [f.oneof_index for f in each.field if f.HasField("oneof_index")] for each in expected.message_type
    ]


def test_every_field_and_method_is_that_of_tritons_client() -> None:
    service, config = descriptor_pb2.FileDescriptorSet.FromString(of_clients(OF_TRITON)).file
    known = fields(service.message_type) | fields(config.message_type)
    found = read_proto(FILE.read_text(), FILE.name)
    ours = fields(found.message_type)
    assert len(ours) > 100
    assert {name: known[name] for name in ours} == ours
    assert methods(found).items() <= methods(service).items()
    assert enums(found).items() <= enums(config).items()


def test_messages_are_made_of_it() -> None:
    request = message("ModelInferRequest")(model_name="a", raw_input_contents=[b"1"])
    request.parameters["timeout"].int64_param = 3
    again = message("ModelInferRequest").FromString(request.SerializeToString())
    assert (again.model_name, again.parameters["timeout"].int64_param) == ("a", 3)
    assert POOL.FindServiceByName("inference.GRPCInferenceService").methods_by_name["ModelStreamInfer"].client_streaming


@pytest.mark.parametrize(
    "text", ["import 'x';", "message A oneof", "message A { string a = b; }", "message A { X a = 1; }"]
)
def test_what_it_does_not_know_is_refused(text: str) -> None:
    with pytest.raises((ValueError, RuntimeError, StopIteration)):
        read_proto(text, "some.proto")
