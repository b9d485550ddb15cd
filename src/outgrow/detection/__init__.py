"""The same nouns for boxes: rows are proposals, features are the levels of a pyramid."""
