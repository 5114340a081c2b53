"""inference.proto → message classes, read when this is imported: code that protoc generates runs with some versions of
protobuf alone. A test compares what is read with what protoc reads, and with what clients have.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FILE = Path(__file__).with_name("inference.proto")
_TOKEN = re.compile(r'//[^\n]*|"[^"]*"|\w+|[^\s\w]')
_Field = descriptor_pb2.FieldDescriptorProto
Proto = Any  # a message of descriptor_pb2, whose classes type checkers do not see


def read_proto(text: str, name: str) -> Proto:
    """Of the language what inference.proto uses: messages and enums, maps, `oneof`, `repeated`, and a service."""
    words = (word for word in _TOKEN.findall(text) if not word.startswith("//"))
    file = descriptor_pb2.FileDescriptorProto(name=name)
    for word in words:
        if word == "syntax":
            file.syntax = _statement(words)[1].strip('"')
        elif word == "package":
            [file.package] = _statement(words)
        elif word == "message":
            _read_message(words, file.message_type.add(name=next(words)))
        elif word == "enum":
            _read_enum(words, file.enum_type.add(name=next(words)))
        elif word == "service":
            _read_service(words, file.service.add(name=next(words)))
        else:
            raise ValueError(f"{name}: {word!r} is not expected here")
    _resolve(file)
    return file


def _statement(words: Iterator[str]) -> list[str]:
    """What stands before the next semicolon."""
    return list(iter(lambda: next(words), ";"))


def _block(words: Iterator[str]) -> Iterator[str]:
    """The first word of each statement between braces."""
    if next(words) != "{":
        raise ValueError("{ is expected")
    yield from iter(lambda: next(words), "}")


def _read_message(words: Iterator[str], message: Proto) -> None:
    for word in _block(words):
        if word == "message":
            _read_message(words, message.nested_type.add(name=next(words)))
        elif word == "oneof":
            message.oneof_decl.add(name=next(words))
            for first in _block(words):
                _read_field(first, words, message).oneof_index = len(message.oneof_decl) - 1
        else:
            _read_field(word, words, message)


def _read_field(first: str, words: Iterator[str], message: Proto) -> Proto:
    """`string name = 1;`, `repeated string names = 1;` or `map<string, Kind> names = 1;`"""
    rest = _statement(words)
    label: Any = _Field.LABEL_OPTIONAL
    if first == "map":
        _, key, _, value, _, *rest = rest
        first = "".join(part.capitalize() for part in rest[0].split("_")) + "Entry"
        entry = message.nested_type.add(name=first)
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=label, type_name=key)
        entry.field.add(name="value", number=2, label=label, type_name=value)
        label = _Field.LABEL_REPEATED
    elif first == "repeated":
        label = _Field.LABEL_REPEATED
        first, *rest = rest
    name, _, number = rest
    return message.field.add(name=name, number=int(number), label=label, type_name=first)


def _read_enum(words: Iterator[str], enum: Proto) -> None:
    for name in _block(words):
        enum.value.add(name=name, number=int(_statement(words)[1]))


def _read_service(words: Iterator[str], service: Proto) -> None:
    """`rpc Name(stream Request) returns (stream Response) {}`"""
    for _ in _block(words):
        method = service.method.add(name=next(words))
        method.input_type, method.client_streaming = _in_parentheses(words)
        next(words)  # returns
        method.output_type, method.server_streaming = _in_parentheses(words)
        list(_block(words))


def _in_parentheses(words: Iterator[str]) -> tuple[str, bool]:
    """(kind, whether it is a stream)"""
    *stream, kind = iter(lambda: next(words), ")")
    return kind, "stream" in stream


def _resolve(file: Proto) -> None:
    """The names of kinds become full names, and each field gets its type."""
    kinds = {f"{file.package}.{enum.name}": _Field.TYPE_ENUM for enum in file.enum_type}
    kinds |= {name: _Field.TYPE_MESSAGE for name, _ in _messages(file.message_type, file.package)}
    for scope, message in _messages(file.message_type, file.package):
        for field in message.field:
            scalar = f"TYPE_{field.type_name.upper()}"
            if scalar in _Field.Type.keys():  # noqa: SIM118  # it is no dict
                field.type = _Field.Type.Value(scalar)
                field.ClearField("type_name")
            else:
                parts = scope.split(".")
                within = (".".join((*parts[:depth], field.type_name)) for depth in range(len(parts), 0, -1))
                full = next(name for name in within if name in kinds)
                field.type, field.type_name = kinds[full], f".{full}"
    for service in file.service:
        for method in service.method:
            method.input_type = f".{file.package}.{method.input_type}"
            method.output_type = f".{file.package}.{method.output_type}"


def _messages(messages: Iterable[Proto], scope: str) -> Iterator[tuple[str, Proto]]:
    """(full name, message), those inside others too."""
    for message in messages:
        name = f"{scope}.{message.name}"
        yield name, message
        yield from _messages(message.nested_type, name)


POOL = descriptor_pool.DescriptorPool()  # of our own: a client's in the same process may have the same names
POOL.Add(read_proto(FILE.read_text(), FILE.name))
SERVICE = POOL.FindServiceByName("inference.GRPCInferenceService")


def message(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))
