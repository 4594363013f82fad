"""Breaking lines by what a terminal shows."""

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from sim.report.text import wrap


def test_wrap_breaks_between_words_and_indents() -> None:
    assert wrap("one two three four", 9, indent="  ") == ["one two", "  three", "  four"]


def test_wrap_breaks_a_word_that_is_too_long() -> None:
    assert wrap("abcdefghij", 6, indent="  ") == ["abcd", "  efgh", "  ij"]


def test_wrap_counts_wide_characters_twice() -> None:
    assert wrap("日本語 ok", 5) == ["日本", "語 ok"]


SHOWN = st.characters().filter(lambda char: char.isprintable() and cell_len(char) > 0)


@settings(derandomize=True, database=None)
@given(st.text(SHOWN), st.integers(4, 30))
def test_wrapped_lines_fit_and_nothing_is_lost(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
