"""Gradients of gradients, by the operators themselves where the algebra allows it.

Let `L = <u, f(z)>`, with f an operator, z what it is differentiated by, and u the gradient of its
output. The gradient operator returns L's derivatives by z, so that its own gradient is L's Hessian
by (z, u) times what comes from above. The Hessian is symmetric: the gradient of that product, by
what it is multiplied with, is such a product again. So Hessians are all that forward derivatives of
gradients need, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

# A product of the Hessian with a direction of one variable: from the number of the variable, all
# variables and the direction to one tensor per variable, None for zeros.
Along: TypeAlias = Callable[[int, Sequence[tf.Tensor], tf.Tensor], Sequence[Any]]


def hessian_product(
    along: Along,
    function: Callable[..., tf.Tensor],
    variables: Sequence[tf.Tensor],
    directions: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """Multiplies the Hessian of `L` with a direction.

    Most of the directions are zero as a rule: TensorFlow asks for all of them, and has zeros where
    a gradient is not used. These cost nothing.

    Args:
        along: the product with a direction of one variable.
        function: f, of all variables but the last, by operations of TensorFlow, which have
            derivatives of any order. It is called for third derivatives.
        variables: z, and u as the last.
        directions: one of the shape and dtype of each variable.

    Returns:
        One tensor of the shape and dtype of each variable.
    """
    count = len(variables)

    # TensorFlow is told both derivatives of the product: it could not know that a direction that is
    # zero, and skipped, has one. Each has a function of its own, called where that one is wanted:
    # third derivatives make large graphs.

    @tf.custom_gradient
    def product(*directions: tf.Tensor) -> Any:
        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            return hessian_product(along, function, variables, upstream)

        # No tape is to record what none will differentiate.
        constants = [tf.stop_gradient(tensor) for tensor in (*variables, *directions)]
        return _sum_of_products(along, constants[:count], constants[count:]), gradient

    @tf.custom_gradient
    def zeros(*variables: tf.Tensor) -> Any:
        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            def by_variables(*variables: tf.Tensor) -> Any:
                return hessian_product_of(function, variables, directions)

            return vector_jacobian_product(by_variables, variables, upstream)

        return [tf.zeros_like(variable) for variable in variables], gradient

    pairs = zip(product(*directions), zeros(*variables), strict=True)
    return [value + zero for value, zero in pairs]


def _sum_of_products(
    along: Along, variables: Sequence[tf.Tensor], directions: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    sums = [tf.zeros_like(variable) for variable in variables]
    for number, direction in enumerate(directions):

        def add(
            number: int = number, direction: tf.Tensor = direction, sums: Any = sums
        ) -> list[tf.Tensor]:
            terms = zip(sums, along(number, variables, direction), strict=True)
            return [s if term is None else s + tf.cast(term, s.dtype) for s, term in terms]

        is_zero = tf.reduce_all(tf.equal(direction, 0))
        sums = tf.cond(is_zero, lambda sums=sums: sums, add)
    return sums


def samples_beside(
    moved: Sequence[tf.Tensor], directions: Sequence[tf.Tensor], origins: Sequence[Any] = (0.0, 0.0)
) -> Iterator[tuple[list[tf.Tensor], tf.Tensor, int]]:
    """What bilinear samples are replaced by in their derivative along a direction.

    Between two rows of pixels a sample is linear in y: its derivative by y is the sample on the row
    below minus the sample on the row above, at the same x. (With x and y exchanged likewise.)

    Args:
        moved: y and x of the samples, from their origins on, in pixels.
        directions: in which y and x go.
        origins: y and x that `moved` is added to.

    Yields:
        Four times y and x as `moved` has them, the factor of the sample there, and the axis along
        which it has a derivative of its own.
    """
    for axis, other in ((0, 1), (1, 0)):
        before = tf.floor(origins[axis] + moved[axis]) - origins[axis]
        for place, along in ((before, -directions[axis]), (before + 1, directions[axis])):
            yield [place, moved[1]] if axis == 0 else [moved[0], place], along, other


def hessian_product_of(
    function: Callable[..., tf.Tensor],
    variables: Sequence[tf.Tensor],
    directions: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """As `hessian_product`, all of it by TensorFlow's gradients of the function."""

    def gradient(*variables: tf.Tensor) -> list[tf.Tensor]:
        *primals, grad_output = variables
        return [
            *vector_jacobian_product(function, primals, grad_output),
            function(*primals),
        ]

    return vector_jacobian_product(gradient, variables, list(directions))


def vector_jacobian_product(
    function: Callable[..., Any], arguments: Sequence[tf.Tensor], upstream: Any
) -> list[tf.Tensor]:
    """Differentiates a function, also inside the gradient of a `tf.custom_gradient`.

    Args:
        function: from the arguments to a tensor or a list of them.
        arguments: floating-point tensors.
        upstream: the gradient of what the function returns, in the same structure.

    Returns:
        The gradient of each argument.
    """
    arguments = list(arguments)
    if not tf.executing_eagerly():
        return _gradients_in_graph(function, arguments, upstream)
    if not _tapes_record():
        in_graph = tf.function(functools.partial(_gradients_in_graph, function), autograph=False)
        return list(in_graph(arguments, upstream))
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        outputs = function(*arguments)
    gradients = tape.gradient(outputs, arguments, output_gradients=upstream)
    return _with_zeros(gradients, arguments)


def _tapes_record() -> bool:
    """Whether a tape would record: they pause while TensorFlow takes a forward derivative."""
    with tf.GradientTape() as tape:
        one = tf.constant(1.0)
        tape.watch(one)
        same = tf.identity(one)
    return tape.gradient(same, one) is not None


def _gradients_in_graph(
    function: Callable[..., Any], arguments: Sequence[tf.Tensor], upstream: Any
) -> list[tf.Tensor]:
    arguments = [tf.identity(argument) for argument in arguments]
    gradients = tf.gradients(function(*arguments), arguments, upstream)
    return _with_zeros(gradients, arguments)


def _with_zeros(gradients: Sequence[Any], arguments: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return [
        tf.zeros_like(argument) if gradient is None else gradient
        for gradient, argument in zip(gradients, arguments, strict=True)
    ]
