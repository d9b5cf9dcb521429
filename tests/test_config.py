"""The choice of the implementation: precedence, threads, and when it is looked at."""

from __future__ import annotations

import threading

import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable import _native, config


@pytest.fixture
def pure_python(monkeypatch, tmp_path):
    marker = tmp_path / "PURE_PYTHON"
    marker.touch()
    monkeypatch.setattr(_native, "_PURE_PYTHON_MARKER", marker)


def in_thread(function):
    """Returns what `function` returns in a thread of its own."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


# --- Precedence ----------------------------------------------------------------------------------


def test_default_is_native():
    assert config.get_backend() == "native"


def test_default_of_a_pure_python_install_is_the_reference(pure_python):
    assert config.get_backend() == "reference"


def test_environment_variable_replaces_the_default(monkeypatch):
    monkeypatch.setenv("TF_DEFORMABLE_BACKEND", "reference")
    assert config.get_backend() == "reference"


def test_environment_variable_chooses_native_in_a_pure_python_install(pure_python, monkeypatch):
    monkeypatch.setenv("TF_DEFORMABLE_BACKEND", "native")
    assert config.get_backend() == "native"


def test_empty_environment_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("TF_DEFORMABLE_BACKEND", "")
    assert config.get_backend() == "native"


def test_set_backend_comes_before_the_environment_variable(monkeypatch):
    monkeypatch.setenv("TF_DEFORMABLE_BACKEND", "reference")
    config.set_backend("native")
    assert config.get_backend() == "native"


def test_use_backend_comes_before_set_backend():
    config.set_backend("reference")
    with config.use_backend("native"):
        assert config.get_backend() == "native"
        config.set_backend("reference")
        assert config.get_backend() == "native"
    assert config.get_backend() == "reference"


def test_use_backend_nests_and_restores():
    with config.use_backend("reference"):
        with config.use_backend("native"):
            assert config.get_backend() == "native"
        assert config.get_backend() == "reference"
    assert config.get_backend() == "native"


def test_use_backend_restores_after_an_error():
    with pytest.raises(RuntimeError, match="inside"), config.use_backend("reference"):
        raise RuntimeError("inside")
    assert config.get_backend() == "native"


# --- Names that are none -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cuda", "", "NATIVE", None, 1])
def test_set_backend_refuses_other_names(name):
    with pytest.raises(ValueError, match=r'set_backend: name must be "native" or "reference", got'):
        config.set_backend(name)
    assert config.get_backend() == "native"


def test_use_backend_refuses_other_names():
    with (
        pytest.raises(
            ValueError, match=r'use_backend: name must be .* or "reference", got \'gpu\''
        ),
        config.use_backend("gpu"),
    ):
        pass


def test_environment_variable_with_another_name_is_an_error(monkeypatch):
    monkeypatch.setenv("TF_DEFORMABLE_BACKEND", "fast")
    with pytest.raises(ValueError, match="variable TF_DEFORMABLE_BACKEND must be .*, got 'fast'"):
        config.get_backend()


# --- Threads -------------------------------------------------------------------------------------


def test_set_backend_holds_for_other_threads():
    config.set_backend("reference")
    assert in_thread(config.get_backend) == "reference"


def test_use_backend_holds_for_its_own_thread_only():
    inside = threading.Barrier(2, timeout=10)
    seen = {}

    def work(name):
        with config.use_backend(name):
            inside.wait()  # both threads are in their blocks
            seen[name] = config.get_backend()
            inside.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("native", "reference")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"native": "native", "reference": "reference"}
    with config.use_backend("reference"):
        assert in_thread(config.get_backend) == "native"


# --- When it is looked at ------------------------------------------------------------------------


def operators(function):
    """Returns the types of all operators in the graph of a traced function."""
    graph = function.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for body in graph.library.function for node in body.node_def)]
    return {node.op for node in nodes}


def convolution():
    return tf_deformable.deformable_conv2d(
        tf.ones([1, 4, 4, 2]), tf.ones([3, 3, 2, 3]), tf.zeros([1, 4, 4, 18])
    )


def test_a_traced_function_keeps_what_it_was_traced_with():
    function = tf.function(convolution)
    with config.use_backend("reference"):
        expected = function()
    assert "TFDeformable>Conv2D" not in operators(function)
    tf.debugging.assert_near(function(), expected)


def test_the_choice_inside_a_traced_function_counts():
    @tf.function
    def both():
        with config.use_backend("native"):
            native = convolution()
        with config.use_backend("reference"):
            return native - convolution()

    assert "TFDeformable>Conv2D" in operators(both)
    tf.debugging.assert_near(both(), tf.zeros([1, 4, 4, 3]), atol=1e-5)
