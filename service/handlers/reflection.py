"""grpc.reflection.v1 and v1alpha: describe the services to clients that have no .proto file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from service.errors import InvalidInput
from service.handlers.predictor import echo
from service.pb.grpc.reflection.v1 import reflection_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from google.protobuf.descriptor import FileDescriptor
    from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto

    from service.handlers import Alternative, BatchHandler, MessageHandler

V1 = "grpc.reflection.v1"
V1ALPHA = "grpc.reflection.v1alpha"
VERSIONS = (V1, V1ALPHA)

MAX_REQUEST_BYTES = 4096
"""Maximum size of a request, which is a name. The reply repeats it, so this bounds the reply too."""

_ERROR_DETAILS = (error_details_pb2.DESCRIPTOR, status_pb2.DESCRIPTOR)
"""The message types of error details: tools look them up to print an error."""

_NOT_FOUND, _INVALID_ARGUMENT = 5, 3  # of grpc.StatusCode, which handlers do not import


class ReflectionHandler:
    """A `service.handlers.Service`: one version of reflection, over an index that the versions share.

    Both versions have the same messages on the wire, so those of v1 read and write both.
    """

    def __init__(self, version: str, index: SymbolIndex) -> None:
        self._index = index
        self.name = service_name(version)
        self.unary: Mapping[str, MessageHandler] = {}
        self.streams: Mapping[str, MessageHandler] = {"ServerReflectionInfo": self.describe}
        self.batches: Mapping[str, BatchHandler] = {"ServerReflectionInfo": lambda *_: None}
        self.alternatives: Mapping[str, Alternative] = {}

    async def describe(self, request: bytes, _: float) -> bytes:
        """Map a serialised ServerReflectionRequest to its one response; InvalidInput for other or too many bytes."""
        if len(request) > MAX_REQUEST_BYTES:
            raise InvalidInput("message", f"holds {len(request)} bytes; expected at most {MAX_REQUEST_BYTES}")
        try:
            message = pb.ServerReflectionRequest.FromString(request)
        except DecodeError:
            raise InvalidInput("message", "is not a ServerReflectionRequest") from None
        reply = self._describe(message)
        reply.valid_host = message.host
        reply.original_request.CopyFrom(message)
        return reply.SerializeToString()

    def _describe(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        index = self._index
        match request.WhichOneof("message_request"):
            case "list_services":
                services = [pb.ServiceResponse(name=name) for name in index.services]
                return pb.ServerReflectionResponse(list_services_response=pb.ListServiceResponse(service=services))
            case "file_by_filename":
                return _files(index.closure(request.file_by_filename), f"file {echo(request.file_by_filename)}")
            case "file_containing_symbol":
                symbol = request.file_containing_symbol
                return _files(index.closure(index.symbols.get(symbol)), f"symbol {echo(symbol)}")
            case "file_containing_extension":
                extension = request.file_containing_extension
                file = index.extensions.get(extension.containing_type, {}).get(extension.extension_number)
                name = f"extension {extension.extension_number} of {echo(extension.containing_type)}"
                return _files(index.closure(file), name)
            case "all_extension_numbers_of_type":
                return self._extension_numbers(request.all_extension_numbers_of_type)
            case _:
                return _error(_INVALID_ARGUMENT, "message_request: is not set; expected one of its fields")

    def _extension_numbers(self, name: str) -> pb.ServerReflectionResponse:
        if name not in self._index.messages:
            return _error(_NOT_FOUND, f"there is no message type {echo(name)}")
        numbers = sorted(self._index.extensions.get(name, ()))
        response = pb.ExtensionNumberResponse(base_type_name=name, extension_number=numbers)
        return pb.ServerReflectionResponse(all_extension_numbers_response=response)


class SymbolIndex:
    """An index of proto files by the symbols that they define, and the names of the services that they describe.

    Clients cannot see any other file of the process.
    """

    def __init__(self, files: Iterable[FileDescriptorProto], services: Iterable[str]) -> None:
        self.services = sorted(services)
        self.symbols: dict[str, str] = {}
        """The file of each service, method, message, field, oneof, enum, enum value and extension, by full name."""
        self.messages: set[str] = set()
        self.extensions: dict[str, dict[int, str]] = {}
        """The file of each extension, by the type that it extends and its number."""
        self._imports: dict[str, Sequence[str]] = {}
        self._content: dict[str, bytes] = {}
        for file in files:
            self._imports[file.name] = list(file.dependency)
            self._content[file.name] = file.SerializeToString()
            self._add_file(file)

    def closure(self, name: str | None) -> list[bytes]:
        """Return a file and all that it imports, serialised, that file first; empty if the name is unknown."""
        if name not in self._content:
            return []
        names = [name]
        for known in names:  # the loop appends to it
            names += [imported for imported in self._imports[known] if imported not in names]
        return [self._content[known] for known in names]

    def _add_file(self, file: FileDescriptorProto) -> None:
        scope = f"{file.package}." if file.package else ""
        for service in file.service:
            self._add(file, f"{scope}{service.name}")
            for method in service.method:
                self._add(file, f"{scope}{service.name}.{method.name}")
        self._add_types(file, scope, file.message_type, file.enum_type, file.extension)

    def _add_types(
        self,
        file: FileDescriptorProto,
        scope: str,
        messages: Iterable[DescriptorProto],
        enums: Iterable[EnumDescriptorProto],
        extensions: Iterable[FieldDescriptorProto],
    ) -> None:
        for enum in enums:
            self._add(file, f"{scope}{enum.name}")
            for value in enum.value:  # protobuf puts a value into the scope of its enum
                self._add(file, f"{scope}{value.name}")
        for extension in extensions:
            self._add(file, f"{scope}{extension.name}")
            self.extensions.setdefault(extension.extendee.lstrip("."), {})[extension.number] = file.name
        for message in messages:
            name = f"{scope}{message.name}"
            self.messages.add(name)
            self._add(file, name)
            for field in message.field:
                self._add(file, f"{name}.{field.name}")
            for oneof in message.oneof_decl:
                self._add(file, f"{name}.{oneof.name}")
            self._add_types(file, f"{name}.", message.nested_type, message.enum_type, message.extension)

    def _add(self, file: FileDescriptorProto, symbol: str) -> None:
        self.symbols[symbol] = file.name


def service_name(version: str) -> str:
    """Return the full name of the service of a version."""
    return f"{version}.ServerReflection"


def reflection_handlers(services: Iterable[str]) -> list[ReflectionHandler]:
    """Make a handler for each version, which describe these services, known to protobuf, and reflection itself.

    With each file come those that it imports.
    """
    names = list(services)
    pool = descriptor_pool.Default()
    described = [pb.DESCRIPTOR, *_ERROR_DETAILS, *map(pool.FindFileContainingSymbol, names)]
    index = SymbolIndex([*_with_imports(described), _v1alpha()], [*names, *map(service_name, VERSIONS)])
    return [ReflectionHandler(version, index) for version in VERSIONS]


def _with_imports(files: Iterable[FileDescriptor]) -> Iterator[FileDescriptorProto]:
    rest, seen = list(files), set()
    while rest:
        file = rest.pop()
        if file.name not in seen:
            seen.add(file.name)
            rest += file.dependencies
            yield FileDescriptorProto.FromString(file.serialized_pb)


def _v1alpha() -> FileDescriptorProto:
    """Describe v1alpha, whose file differs from that of v1 in its names alone.

    Generated code of its own would be a second definition of these names in a process that imports grpcio-reflection.
    """
    content: bytes = pb.DESCRIPTOR.serialized_pb
    file = FileDescriptorProto.FromString(content)
    file.name = file.name.replace("/v1/", "/v1alpha/")
    file.package = V1ALPHA
    file.options.deprecated = True
    file.options.go_package += "alpha"
    file.options.java_package += "alpha"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(f".{V1}.", f".{V1ALPHA}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{V1}.", f".{V1ALPHA}.")
        method.output_type = method.output_type.replace(f".{V1}.", f".{V1ALPHA}.")
    return file


def _files(content: list[bytes], name: str) -> pb.ServerReflectionResponse:
    if not content:
        return _error(_NOT_FOUND, f"there is no {name}")
    response = pb.FileDescriptorResponse(file_descriptor_proto=content)
    return pb.ServerReflectionResponse(file_descriptor_response=response)


def _error(code: int, message: str) -> pb.ServerReflectionResponse:
    return pb.ServerReflectionResponse(error_response=pb.ErrorResponse(error_code=code, error_message=message))
