"""What is said of names that are missing, wrong or left over."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable.convert.matching import Matching


def _arrays(*names: str) -> dict[str, np.ndarray]:
    return {name: np.ones([2], np.float32) for name in names}


def _left(scope: list[str], ignore: str | None, *names: str) -> list[str]:
    """The names that must not be left."""
    try:
        Matching("op", _arrays(*names), scope, ignore).check("it")
    except ValueError as error:
        return str(error).split("not used: ")[1].split("\n")[0].split(", ")
    return []


def test_what_is_left_in_the_scope_is_an_error() -> None:
    assert _left(["a."], None, "a.x", "b.x", "a") == ["a.x"]
    assert _left([""], None, "a.x", "b") == ["a.x", "b"]
    assert _left([], None, "a.x") == []


def test_all_of_a_name_is_ignored_or_nothing() -> None:
    assert _left(["a."], "x", "a.x", "a.xy", "a.zx") == ["a.xy", "a.zx"]


def test_ignored_is_what_follows_the_longest_scope() -> None:
    names = ("a.x", "a.b.x", "a.b.y", "a.b.c.x")
    assert _left(["a.", "a.b."], "x", *names) == ["a.b.y", "a.b.c.x"]
    assert _left(["a.b.", "a."], "x", *names) == ["a.b.y", "a.b.c.x"]
    assert _left(["a.", "a.b."], "b[.]x", *names) == ["a.x", "a.b.x", "a.b.y", "a.b.c.x"]


def test_an_empty_array_has_no_shape() -> None:
    matching = Matching("op", {"x": np.ones([2, 0]), "y": np.ones([2, 3])}, [""])
    assert matching.shape("y", "[F,C]") == (2, 3)
    assert matching.shape("x", "[F,C]") is None
    assert matching.shape("y", "[F]") is None
    with pytest.raises(ValueError, match=r"x must have shape \[F,C\], got \[2,0\], y must have"):
        matching.check("it")


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8])
def test_integers_are_no_weights(dtype: type) -> None:
    matching = Matching("op", {"x": np.ones([2], dtype)}, [""])
    matching.take("x", [2])
    with pytest.raises(ValueError, match="x must hold floating-point numbers, got"):
        matching.check("it")


def test_the_names_there_are_are_told_only_where_none_was_found() -> None:
    matching = Matching("op", _arrays("x", "y"), [])
    matching.take("z", [2])
    with pytest.raises(ValueError, match="missing: z\n  the names there are: x, y$"):
        matching.check("it")
    matching.take("x", [2])
    with pytest.raises(ValueError, match="missing: z$"):
        matching.check("it")


def test_nothing_is_loaded_where_something_is_wrong() -> None:
    variable = tf.Variable(tf.zeros([2]))
    matching = Matching("op", _arrays("x"), [""])
    matching.plan(variable, matching.take("x", [2]))
    matching.refuse("something")
    with pytest.raises(ValueError, match="wrong: something"):
        matching.load("it")
    np.testing.assert_array_equal(variable, [0, 0])
