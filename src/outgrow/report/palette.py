"""The colours of pages and plots."""

PALETTE = {
    "paper": ("#ffffff", "#15181a"),
    "ink": ("#1b1e21", "#e6e8ea"),
    "soft": ("#5c646b", "#a3abb2"),
    "rule": ("#d9dde0", "#363c41"),
    "s0": ("#0b7a57", "#4fd39f"),
    "s1": ("#0072b2", "#5fb4ee"),
    "s2": ("#c85a00", "#f29b4c"),
    "s3": ("#a0528a", "#dd97ca"),
    "s4": ("#8a6d00", "#d9bd4a"),
    "s5": ("#3a93c4", "#8fd0f2"),
    "s6": ("#6a4fb3", "#b3a1f2"),
    "s7": ("#b0303a", "#ff8d95"),
    "alone": ("#5f666c", "#aeb5bb"),
    "teacher": ("#4a4f54", "#c3c8cc"),
    "corrected": ("#b34700", "#ffa06b"),
}
"""Colours by name, for light and dark mode. ``s0`` to ``s7`` are distinct for colour-blind readers."""
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
COLOURS = tuple(LIGHT[f"s{number}"] for number in range(8))


def colour(number: int) -> str:
    """The palette name for series ``number``."""
    return f"s{number % len(COLOURS)}"
