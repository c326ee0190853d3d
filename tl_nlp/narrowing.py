"""What no answer reads is not computed: where a head reads the first token alone, the rest of an export's last block.

Its keys and values are of all tokens; its queries, and all that follows them, of the first. Answers are the same.
"""

from __future__ import annotations

import onnx_ir as ir

_EACH_ALONE = ("Add", "Sub", "Mul", "Div", "Pow", "Cast", "Gelu", "Tanh", "Relu", "Sigmoid", "Erf")


def narrow(graph: ir.Graph) -> None:
    """Changes a graph that picks the first token from states of shape (windows, tokens, hidden)."""
    picking = [node for node in graph if _picks_first(node)]
    narrowed = {node: [0] for node in picking}  # of which one token is needed, and the inputs of which they need one
    for node in reversed(graph):
        uses = node.outputs[0].uses()
        if uses and all(place in narrowed.get(reader, ()) for reader, place in uses) and (places := _places(node)):
            narrowed[node] = places
    for node in picking:
        del narrowed[node]  # it picks the first of one as of many
    read = [(node, place, node.inputs[place]) for node, places in narrowed.items() for place in places]
    firsts = {value: _first(value, 1) for value in {value for *_, value in read} if value.producer() not in narrowed}
    for node, place, value in read:
        node.replace_input_with(place, firsts.get(value, value))
    for node in narrowed:
        _fit(node)


def _picks_first(node: ir.Node) -> bool:
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 1:
        return False
    index = ir.convenience.get_const_tensor(node.inputs[1])
    return index is not None and index.shape == () and index.numpy() == 0 and _tokens(node.inputs[0]) is not None


def _places(node: ir.Node) -> list[int]:
    """Of a node of whose output a token reads no other token of some inputs: the places of those; else none."""
    output, values = node.outputs[0], node.inputs
    tokens, kind = _tokens(output), node.op_type
    if node.domain or output.is_graph_output() or tokens is None or any(one.uses() for one in node.outputs[1:]):
        return []
    places = [place for place, value in enumerate(values) if _tokens(value) == tokens]
    if kind in _EACH_ALONE and all(place in places or _n_dims(value) in (0, 1) for place, value in enumerate(values)):
        return places
    alone = (
        (kind == "MatMul" and _n_dims(values[1]) == 2)
        or (kind == "LayerNormalization" and node.attributes.get_int("axis", -1) == -1)
        or (kind == "Reshape" and all(isinstance(size, int) for size in output.shape[2:]))
        or (kind == "Attention" and len(values) <= 4 and all(_n_dims(value) == 4 for value in values[3:]))
    )
    return [0] if alone and 0 in places else []


def _tokens(value: ir.Value | None) -> tuple[str, str] | None:
    """What the windows and the tokens of states are called, which are their first dimensions."""
    if value is None or _n_dims(value) < 3:
        return None
    windows, tokens = (size.value if isinstance(size, ir.SymbolicDim) else None for size in value.shape[:2])
    return (windows, tokens) if windows and tokens else None


def _n_dims(value: ir.Value | None) -> int:
    """-1 where it is not known."""
    return len(value.shape) if value is not None and value.shape is not None else -1


def _fit(node: ir.Node) -> None:
    """Makes what a narrowed node reads beside tokens, and what it is said to give, of one token too."""
    output = node.outputs[0]
    if node.op_type == "Reshape":
        node.replace_input_with(1, _constant(output, "shape", [-1, 1, *output.shape[2:]]))
    elif node.op_type == "Attention" and len(node.inputs) == 4:
        node.replace_input_with(3, _first(node.inputs[3], 2))  # of a mask, which is for each query and key
    output.shape = ir.Shape([output.shape[0], 1, *output.shape[2:]])


def _first(value: ir.Value, axis: int) -> ir.Value:
    """The first of what lies along an axis, which stays."""
    producer = value.producer()
    start, end, axes = (
        _constant(value, f"{what}_of_first", [n]) for what, n in (("start", 0), ("end", 1), ("axis", axis))
    )
    slicing = ir.node("Slice", [value, start, end, axes])
    first = slicing.outputs[0]
    first.name, first.type = f"{value.name}_first", value.type
    first.shape = ir.Shape([1 if n == axis else size for n, size in enumerate(value.shape)])
    producer.graph.insert_after(producer, slicing)
    return first


def _constant(beside: ir.Value, what: str, numbers: list[int]) -> ir.Value:
    value = ir.Value(name=f"{beside.name}_{what}", const_value=ir.tensor(numbers, ir.DataType.INT64))
    value.shape, value.type = ir.Shape([len(numbers)]), ir.TensorType(ir.DataType.INT64)
    beside.producer().graph.register_initializer(value)
    return value
