"""MindIR of format version 1 from that of version 3, which MindSpore writes since 2.7.

MindSpore Lite 2.0.0 and other runtimes of its time read version 1 only. The files differ in two
things: what version 1 keeps as attributes of a primitive (the epsilon of BatchNorm), version 3
passes as constant inputs of a function; and version 3 orders side effects with Load, UpdateState
and Depend, of which inference has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from mindspore.train import mind_ir_pb2
from mindspore.train.mind_ir_pb2 import AttributeProto, ModelProto, NodeProto, PrimitiveProto

from src.errors import UserError

_REFERENCE = "REF::"  # a node's op_type names its primitive


@dataclass(frozen=True)
class _Primitive:
    """How version 1 writes a primitive.

    Attributes:
        inputs: how many inputs it keeps.
        attributes: names of the attributes that the inputs after them become, in order.
    """

    inputs: int
    attributes: tuple[str, ...] = ()


# Each of these has been compared in MindSpore Lite 2.0.0, which computes others, SiLU and HSigmoid,
# wrongly.
_PRIMITIVES = {
    **dict.fromkeys(
        ("AdaptiveAvgPool2D", "Flatten", "HSwish", "MaxPool", "ReLU", "ReLU6", "Sigmoid"),
        _Primitive(1),
    ),
    **dict.fromkeys(
        (
            "Add",
            "Conv2D",
            "Div",
            "ExpandDims",
            "Mul",
            "Reshape",
            "Sub",
            "Transpose",
            "TupleGetItem",
        ),
        _Primitive(2),
    ),
    "AvgPool": _Primitive(1, ("kernel_size", "strides", "pad_mode", "format")),
    "BatchNorm": _Primitive(5, ("is_training", "epsilon", "momentum", "format")),
    "BiasAdd": _Primitive(2, ("format",)),
    "Concat": _Primitive(1, ("axis",)),
    "MatMul": _Primitive(2, ("transpose_a", "transpose_b")),
    "ReduceMean": _Primitive(2, ("keep_dims",)),
    "Softmax": _Primitive(1, ("axis",)),
    "Split": _Primitive(1, ("axis", "output_num")),
    "StridedSlice": _Primitive(
        4, ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    ),
}
_ANY_INPUTS = "MakeTuple"
_PASS_FIRST_INPUT = ("Load", "Depend")
_EFFECTS = "UpdateState"
# Version 3 passes these as numbers.
_WORDS = {"format": {0: b"NCHW", 1: b"NHWC"}, "pad_mode": {1: b"SAME", 2: b"VALID"}}
_WINDOWS = (
    "kernel_size",
    "strides",
)  # (height, width) in version 3, one number for each of N, C, H, W in version 1


def read_mindir(data: bytes) -> ModelProto:
    """Parse a MindIR file; raises UserError for anything else."""
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise UserError("not a MindIR file") from None
    return model


def to_version_1(data: bytes) -> bytes:
    """Convert the bytes of a MindIR file of version 3, one graph for inference, to version 1.

    Raises:
        UserError: the network uses a primitive that this conversion does not know, or in an unknown
        form.
    """
    model = read_mindir(data)
    graph = model.graph
    types = {primitive.name: primitive for primitive in model.primitives}
    constants = {
        node.output[0]: node.attribute[0] for node in graph.node if node.op_type == "Constant"
    }
    sources: dict[str, str] = {}  # of values that only pass through
    calls: list[tuple[NodeProto, PrimitiveProto]] = []
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        primitive = types.get(node.op_type[len(_REFERENCE) :])
        if primitive is None:
            raise UserError(
                f"MindIR conversion: '{node.op_type}' is no call of a primitive; networks with control "
                "flow or subgraphs cannot be converted to version 1"
            )
        inputs = [sources.get(name, name) for name in node.input]
        if primitive.op_type in _PASS_FIRST_INPUT:
            sources[node.output[0]] = inputs[0]
        elif primitive.op_type != _EFFECTS:
            calls.append((_node(node, inputs), primitive))
    for output in graph.output:
        output.name = sources.get(output.name, output.name)
    calls = _needed(calls, [output.name for output in graph.output])

    primitives: dict[bytes, PrimitiveProto] = {}
    nodes = []
    for node, function in calls:
        primitive = _as_attributes(node, function, constants)
        known = primitives.setdefault(primitive.SerializeToString(deterministic=True), primitive)
        known.name = known.name or f"{known.op_type}:{len(primitives)}"
        node.op_type = _REFERENCE + known.name
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    nodes = [
        node for node in graph.node if node.op_type == "Constant" and node.output[0] in used
    ] + nodes
    del graph.node[:], graph.attribute[:], model.primitives[:]
    graph.node.extend(nodes)
    model.primitives.extend(primitives.values())
    model.mind_ir_version = 1
    return model.SerializeToString(deterministic=True)


def _node(node: NodeProto, inputs: list[str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(inputs)
    return copy


def _needed(calls: list[tuple[NodeProto, PrimitiveProto]], outputs: list[str]) -> list:
    """The calls that the outputs depend on; the others only ordered side effects."""
    wanted, kept = set(outputs), []
    for node, primitive in reversed(calls):
        if wanted.intersection(node.output):
            kept.append((node, primitive))
            wanted.update(node.input)
    return kept[::-1]


def _as_attributes(
    node: NodeProto, function: PrimitiveProto, constants: dict[str, AttributeProto]
) -> PrimitiveProto:
    """The primitive without a name that takes as attributes what ``node`` passes as constants, which it loses."""
    primitive = PrimitiveProto()
    primitive.CopyFrom(function)
    primitive.name = ""
    primitive.prim_type = PrimitiveProto.PRIMITIVE
    if function.op_type == _ANY_INPUTS:
        return primitive
    known = _PRIMITIVES.get(function.op_type)
    if known is None:
        raise UserError(
            f"MindIR conversion: the primitive '{function.op_type}' ({node.domain}) is not known; "
            f"known are {', '.join(sorted(_PRIMITIVES))}. --mindir_version 3 needs no conversion"
        )
    arguments = list(node.input[known.inputs :])
    if len(node.input) < known.inputs or len(arguments) not in (0, len(known.attributes)):
        raise UserError(
            f"MindIR conversion: the primitive '{function.op_type}' ({node.domain}) has "
            f"{len(node.input)} inputs, should have {known.inputs + len(known.attributes)}"
        )
    for name, argument in zip(known.attributes, arguments):
        if argument not in constants:
            raise UserError(
                f"MindIR conversion: '{name}' of the primitive '{function.op_type}' ({node.domain}) is "
                "computed, version 1 knows only constants"
            )
        attribute = primitive.attribute.add()
        attribute.CopyFrom(constants[argument])
        attribute.name = name
        _in_words_of_version_1(attribute, function.op_type)
    del node.input[known.inputs :]
    return primitive


def _in_words_of_version_1(attribute: AttributeProto, primitive: str) -> None:
    if attribute.name in _WORDS:
        word = _WORDS[attribute.name].get(attribute.i)
        if word is None:
            raise UserError(
                f"MindIR conversion: '{attribute.name}' of '{primitive}' is {attribute.i}, should be one "
                f"of {', '.join(map(str, _WORDS[attribute.name]))}"
            )
        attribute.ClearField("i")
        attribute.s, attribute.type = word, mind_ir_pb2.AttributeProto.STRING
    elif attribute.name in _WINDOWS:
        sizes = [1, 1, *(value.ints[0] for value in attribute.values)]
        del attribute.values[:]
        for size in sizes:
            attribute.values.add(ints=[size], type=AttributeProto.INT64)
