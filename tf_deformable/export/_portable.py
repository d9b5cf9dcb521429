"""SavedModels without custom operators: plain TensorFlow in place of the operators of the package.

A model that was traced holds the native operators, also where the trace is an old one that a
`tf.function` somewhere in it keeps. So the traced functions are changed, not the Python code that
made them: every operator becomes a call of a function that the reference was traced into, with its
attributes and for the shapes that it has there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, function_pb2, graph_pb2, node_def_pb2
from tensorflow.core.protobuf import saved_model_pb2

from tf_deformable._registration import references

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


# By the type of operators: what takes one to the function that replaces it, of the operator's
# inputs, one by one, to the list of its outputs; or to None: it stays.
Replacements: TypeAlias = Mapping[
    str, Callable[[tf.Operation], "Callable[..., list[tf.Tensor]] | None"]
]


def make_portable(folder: Path, replacements: Replacements | None = None) -> None:
    """Replaces the operators in a SavedModel, in its file.

    Args:
        folder: of the SavedModel.
        replacements: by default plain TensorFlow for every operator of the package.

    Raises:
        ValueError: an operator of the package is not among the replacements.
    """
    replacements = references() if replacements is None else replacements
    path = folder / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for meta_graph in saved_model.meta_graphs:
        _Rewriter(meta_graph.graph_def, replacements).run()
        with tf.Graph().as_default():
            described = tf.compat.v1.train.export_meta_graph(graph_def=meta_graph.graph_def)
        meta_graph.meta_info_def.stripped_op_list.CopyFrom(described.meta_info_def.stripped_op_list)
    path.write_bytes(saved_model.SerializeToString(deterministic=True))
    _renew_fingerprint(folder)
    left = sorted(custom_operators(folder) - set(replacements))
    if left:
        raise ValueError(f"export: the operators {left} have no counterpart in plain TensorFlow")


def custom_operators(folder: Path) -> set[str]:
    """Returns the types of the operators in a SavedModel that are registered by the package."""
    saved_model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return {
        node.op
        for meta_graph in saved_model.meta_graphs
        for nodes in _node_lists(meta_graph.graph_def)
        for node in nodes
        if node.op.startswith("TFDeformable>")
    }


def _node_lists(graph_def: graph_pb2.GraphDef) -> Iterator[Any]:
    yield graph_def.node
    for function in graph_def.library.function:
        yield function.node_def


class _Rewriter:
    """Replaces the operators of one graph and of the functions in its library."""

    def __init__(self, graph_def: graph_pb2.GraphDef, replacements: Replacements) -> None:
        self._graph_def = graph_def
        self._replacements = replacements
        self._calls: dict[Any, node_def_pb2.NodeDef | None] = {}

    def run(self) -> None:
        library = self._graph_def.library
        functions = [f for f in library.function if self._concerns(f.node_def)]
        if functions:
            known = graph_pb2.GraphDef(library=library, versions=self._graph_def.versions)
            with tf.Graph().as_default():
                tf.import_graph_def(known, name="")
                graphs = [_graph_of(function) for function in functions]
            for function, graph in zip(functions, graphs, strict=True):
                self._replace_in_function(function, graph)
        if self._concerns(self._graph_def.node):
            with tf.Graph().as_default() as graph:
                tf.import_graph_def(self._graph_def, name="")
            for node in self._concerns(self._graph_def.node):
                self._replace(node, graph.get_operation_by_name(node.name))

    def _concerns(self, nodes: Any) -> list[node_def_pb2.NodeDef]:
        return [node for node in nodes if node.op in self._replacements]

    def _replace_in_function(self, function: function_pb2.FunctionDef, graph: tf.Graph) -> None:
        renamed = {}  # outputs of the operators, as functions name them
        for node in self._concerns(function.node_def):
            op = graph.get_operation_by_name(node.name)
            if self._replace(node, op):
                for number, output in enumerate(_output_names(op)):
                    renamed[f"{node.name}:{output}"] = f"{node.name}:output:{number}"
        for node in function.node_def:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        for name, value in function.ret.items():
            function.ret[name] = renamed.get(value, value)

    def _replace(self, node: node_def_pb2.NodeDef, op: tf.Operation) -> bool:
        """Makes a node of an operator the call of a function, unless it is to stay."""
        call = self._call_of(op)
        if call is None:
            return False
        kept = {name: value for name, value in node.attr.items() if name.startswith("_")}
        node.op = call.op
        node.ClearField("attr")
        for name, value in {**call.attr, **kept}.items():
            node.attr[name].CopyFrom(value)
        return True

    def _call_of(self, op: tf.Operation) -> node_def_pb2.NodeDef | None:
        """Returns the call of what replaces an operator, once the library holds that."""
        attributes = {
            name: value.SerializeToString(deterministic=True)
            for name, value in op.node_def.attr.items()
            if not name.startswith("_")
        }
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in op.inputs]
        shapes = [str(spec.shape) for spec in specs]
        key = (op.type, tuple(sorted(attributes.items())), tuple(shapes))
        if key not in self._calls:
            function = self._replacements[op.type](op)
            self._calls[key] = None if function is None else self._add_call(function, specs)
        return self._calls[key]

    def _add_call(
        self, function: Callable[..., list[tf.Tensor]], specs: list[tf.TensorSpec]
    ) -> node_def_pb2.NodeDef:
        def scoped(*tensors: tf.Tensor) -> list[tf.Tensor]:
            # Functions are inlined under the name of the call: there must be no node of that name.
            with tf.name_scope("tf_deformable_reference"):
                return function(*tensors)

        traced = tf.function(scoped, input_signature=specs, autograph=False)
        concrete = traced.get_concrete_function()
        with tf.Graph().as_default() as graph:
            concrete(*(tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in specs))
        graph_def = graph.as_graph_def()
        (call,) = (node for node in graph_def.node if node.op in _CALLS)
        # Names hold a number that is unique in this process, and not in the one that traced what is
        # in the library.
        self._add_functions(graph_def.library, call)
        return call

    def _add_functions(
        self, library: function_pb2.FunctionDefLibrary, call: node_def_pb2.NodeDef
    ) -> None:
        names = {function.signature.name for function in self._graph_def.library.function}
        renamed: dict[str, str] = {}
        for function in library.function:
            name = f"tf_deformable_reference_{len(self._calls)}_{len(renamed)}"
            while name in names:
                name += "_"
            renamed[function.signature.name] = name
        added = [self._graph_def.library.function.add() for _ in library.function]
        for function, copy in zip(library.function, added, strict=True):
            copy.CopyFrom(function)
            copy.signature.name = renamed[function.signature.name]
            for node in copy.node_def:
                _rename_functions(node, renamed)
        _rename_functions(call, renamed)


def _rename_functions(node: node_def_pb2.NodeDef, names: dict[str, str]) -> None:
    for attribute in node.attr.values():
        of_attribute: list[attr_value_pb2.NameAttrList] = [*attribute.list.func]
        if attribute.HasField("func"):
            of_attribute.append(attribute.func)
        for function in of_attribute:
            function.name = names.get(function.name, function.name)


def _graph_of(function: function_pb2.FunctionDef) -> tf.Graph:
    """Returns a graph of a function, with the shapes of its tensors."""
    # No public name leads to it.
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

    return function_def_to_graph(function)


def _output_names(op: tf.Operation) -> list[str]:
    """Returns the names that functions have for the outputs of an operator, as "grad_mask:0"."""
    names = []
    for output in op.op_def.output_arg:
        count = op.get_attr(output.number_attr) if output.number_attr else 1
        names += [f"{output.name}:{number}" for number in range(count)]
    return names


def _renew_fingerprint(folder: Path) -> None:
    """Makes `fingerprint.pb` that of the changed file, or removes it."""
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    with contextlib.suppress(ImportError):  # No public name leads to it.
        from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint

        write_fingerprint(str(folder))
