"""MindIR of format version 1 from that of version 3, which MindSpore has written since 2.7.

MindSpore Lite 2.0.0 and other runtimes of its time read version 1 only. The files differ in two
things. Version 1 stores the parameters of a primitive, such as the epsilon of BatchNorm, as
attributes; version 3 passes them as constant inputs of a function. And version 3 orders side
effects with Load, UpdateState and Depend; inference has no side effects.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from mindspore.train import mind_ir_pb2
from mindspore.train.mind_ir_pb2 import AttributeProto, ModelProto, NodeProto, PrimitiveProto

from src.errors import UserError

Call = tuple[NodeProto, PrimitiveProto]  # a node, and the primitive that it calls

_REFERENCE = "REF::"  # begins the op_type of a node; the name of its primitive follows


@dataclass(frozen=True)
class _Primitive:
    """How version 1 writes a primitive.

    Attributes:
        inputs: how many inputs it keeps.
        attributes: names of the attributes that the inputs after them become, in order.
    """

    inputs: int
    attributes: tuple[str, ...] = ()


# The results of each of these have been compared in MindSpore Lite 2.0.0. SiLU and HSigmoid are not
# among them: it computes these wrongly.
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
_ANY_INPUTS = "MakeTuple"  # takes any number of inputs in both versions
_PASS_FIRST_INPUT = ("Load", "Depend")  # their other inputs only order side effects
_EFFECTS = "UpdateState"
# Version 3 passes these as numbers, version 1 has words.
_WORDS = {"format": {0: b"NCHW", 1: b"NHWC"}, "pad_mode": {1: b"SAME", 2: b"VALID"}}
# Version 3 has (height, width), version 1 one number for each of N, C, H and W.
_WINDOWS = ("kernel_size", "strides")


def read_mindir(data: bytes) -> ModelProto:
    """Parse the bytes of a MindIR file.

    Raises:
        UserError: they are something else.
    """
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
    constants = {
        node.output[0]: node.attribute[0] for node in graph.node if node.op_type == "Constant"
    }
    primitives: dict[bytes, PrimitiveProto] = {}  # by their content: equal ones are stored once
    nodes: list[NodeProto] = []
    for node, function in _calls(model):
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


def _calls(model: ModelProto) -> list[Call]:
    """The calls that the outputs of the graph depend on, without Load, Depend and UpdateState.

    Outputs of the graph that only pass through these are renamed to what they pass on.
    """
    graph = model.graph
    types = {primitive.name: primitive for primitive in model.primitives}
    sources: dict[str, str] = {}  # of values that only pass through
    calls: list[Call] = []
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        primitive = types.get(node.op_type[len(_REFERENCE) :])
        if primitive is None:
            raise UserError(
                f"MindIR conversion: '{node.op_type}' is no call of a primitive; networks with "
                "control flow or subgraphs cannot be converted to version 1"
            )
        inputs = [sources.get(name, name) for name in node.input]
        if primitive.op_type in _PASS_FIRST_INPUT:
            sources[node.output[0]] = inputs[0]
        elif primitive.op_type != _EFFECTS:
            calls.append((_with_inputs(node, inputs), primitive))
    for output in graph.output:
        output.name = sources.get(output.name, output.name)
    return _needed(calls, [output.name for output in graph.output])


def _with_inputs(node: NodeProto, inputs: list[str]) -> NodeProto:
    """A copy of a node with other inputs."""
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(inputs)
    return copy


def _needed(calls: list[Call], outputs: list[str]) -> list[Call]:
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
    """The primitive of version 1, without a name, that a node of version 3 calls.

    The node loses those constant inputs that become attributes of the primitive.

    Args:
        node: of version 3; becomes one of version 1.
        function: what it calls.
        constants: of the graph, by the name of their output.
    """
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
    # strict=False: there are no arguments where the primitive has the attributes already.
    for name, argument in zip(known.attributes, arguments, strict=False):
        if argument not in constants:
            raise UserError(
                f"MindIR conversion: '{name}' of the primitive '{function.op_type}' "
                f"({node.domain}) is computed, version 1 knows only constants"
            )
        attribute = primitive.attribute.add()
        attribute.CopyFrom(constants[argument])
        attribute.name = name
        _in_words_of_version_1(attribute, function.op_type)
    del node.input[known.inputs :]
    return primitive


def _in_words_of_version_1(attribute: AttributeProto, primitive: str) -> None:
    """Change a value of version 3 to how version 1 writes it; most are written alike."""
    if attribute.name in _WORDS:
        word = _WORDS[attribute.name].get(attribute.i)
        if word is None:
            raise UserError(
                f"MindIR conversion: '{attribute.name}' of '{primitive}' is {attribute.i}, should "
                f"be one of {', '.join(map(str, _WORDS[attribute.name]))}"
            )
        attribute.ClearField("i")
        attribute.s, attribute.type = word, mind_ir_pb2.AttributeProto.STRING
    elif attribute.name in _WINDOWS:
        sizes = [1, 1, *(value.ints[0] for value in attribute.values)]
        del attribute.values[:]
        for size in sizes:
            attribute.values.add(ints=[size], type=AttributeProto.INT64)
