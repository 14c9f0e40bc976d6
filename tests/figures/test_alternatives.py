"""Every figure says in words what it shows, and Jupyter stores the words beside the picture."""

import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cllib import figures
from cllib.figures.base import ALT_LENGTH, alternative, closed, first_sentence


@closed
def drawn(names: tuple[str, ...] = ("naive", "er")) -> Figure:
    """Accuracy after each step,
    with `bands`. More that an ear need not hear.
    """
    figure, (left, right) = plt.subplots(1, 2)
    for name in names:
        left.plot([0, 1], [0, 1], label=name)
    left.text(0, 0, "0.5")
    left.set_yticks([0, 1], ["none", "all"])
    left.set(title=r"test $\alpha^{2}\,x$", xlabel="steps", ylabel="accuracy")
    right.set(title="hidden", xlabel="steps", visible=False)
    left.legend()
    return figure


def test_the_alternative_says_purpose_titles_axes_and_legend() -> None:
    assert alternative(drawn()) == (
        "Accuracy after each step, with bands. Panels: test alpha^2x. Across: steps. "
        "Upwards: accuracy. Legend: naive; er. Named: none; all."
    )


def test_a_long_alternative_is_cut_between_words() -> None:
    text = alternative(drawn(tuple(f"method{i}" for i in range(99))))
    assert ALT_LENGTH - 20 < len(text) <= ALT_LENGTH and text.endswith(" …")
    assert text.removesuffix(" …").split()[-1].rstrip(";").startswith("method")


def test_a_figure_without_words_is_still_named() -> None:
    assert alternative(Figure()) == "A figure."


@pytest.mark.parametrize("text", ["One. Two.", "One.\n\nArgs:\n  x", "One."])
def test_the_first_sentence(text: str) -> None:
    assert first_sentence(text) == "One."


def test_every_figure_of_the_book_has_words_of_its_own() -> None:
    makers = [getattr(figures, name) for name in figures.__all__]
    drawing = [maker for maker in makers if getattr(maker, "__annotations__", {}).get("return") is Figure]
    said = [first_sentence(maker.__doc__) for maker in drawing]
    assert len(said) > 30 and all(len(text) > 20 for text in said) and len(set(said)) == len(said)


def test_jupyter_keeps_the_words_beside_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = InteractiveShell()
    monkeypatch.setattr("cllib.figures.base.get_ipython", lambda: shell)
    with plt.rc_context():
        figures.style()
        data, metadata = shell.display_formatter.format(drawn(), include={"image/png"})
        assert set(data) == {"image/png"} and metadata["image/png"]["alt"] == alternative(drawn())
        assert "image/png" not in shell.display_formatter.format(Figure())[0]  # nothing drawn, nothing shown


def test_powers_of_ten_are_no_names() -> None:
    figure, ax = plt.subplots()
    ax.set(xscale="log", xlim=(1e-3, 1))
    figure.canvas.draw()
    assert alternative(figure) == "A figure."
    plt.close(figure)
