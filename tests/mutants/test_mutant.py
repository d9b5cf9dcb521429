"""How mutants get into a source file."""

from __future__ import annotations

import pytest

from tests.mutants.mutant import Mutant, mutated, switched

SOURCE = "for (; i < n; ++i) sum += a[i] * b[i];\nreturn sum;\n"
BOUND = Mutant("for (; «i < n»;", "i <= n")
STATEMENT = Mutant("«sum += a[i] * b[i];»", "sum = a[i] * b[i];")
INDEX = Mutant("a[i] * «b[i]»", "b[0]")
OTHER = Mutant("a[i] * «b[i]»", "a[i]")


def _switched(*mutants: Mutant) -> str:
    numbers = {mutant: number for number, mutant in enumerate(mutants, start=1)}
    return switched(SOURCE, mutants, lambda mutant: f"on == {numbers[mutant]}")


def test_one_mutant_replaces_what_is_marked() -> None:
    assert mutated(SOURCE, BOUND) == SOURCE.replace("i < n", "i <= n")


def test_expressions_are_behind_a_choice() -> None:
    expected = SOURCE.replace("i < n", "((on == 1) ? (i <= n) : (i < n))")
    assert _switched(BOUND) == expected


def test_statements_are_behind_a_condition() -> None:
    expected = "if (on == 1) { sum = a[i] * b[i]; } else { sum += a[i] * b[i]; }"
    assert _switched(STATEMENT) == SOURCE.replace("sum += a[i] * b[i];", expected)


def test_one_may_be_inside_of_another_or_in_its_place() -> None:
    choice = "((on == 2) ? (b[0]) : (((on == 3) ? (a[i]) : (b[i]))))"
    expected = f"if (on == 1) {{ sum = a[i] * b[i]; }} else {{ sum += a[i] * {choice}; }}"
    got = _switched(STATEMENT, INDEX, OTHER)
    assert got == SOURCE.replace("sum += a[i] * b[i];", expected)


@pytest.mark.parametrize("context", ["«sum»", "«summ»", "sum += a", "«sum» += «a»"])
def test_a_context_that_is_not_there_once_is_an_error(context: str) -> None:
    with pytest.raises(ValueError, match="the file has this"):
        _switched(Mutant(context, "0"))


def test_mutants_that_overlap_are_an_error() -> None:
    with pytest.raises(ValueError, match="overlaps"):
        _switched(Mutant("«sum += a[i]» * b[i]", "0"), Mutant("sum += «a[i] * b[i]»", "0"))
