"""Correct the teacher's logits: the split into right and wrong rows, and one file per rule."""

from outgrow.knowledge.rectifier import Rectifier, corrected_logits, label_trails, make_rule, rectify
from outgrow.knowledge.registry import RULES
from outgrow.knowledge.split import top_class, wrong_rows

__all__ = [
    "RULES",
    "Rectifier",
    "corrected_logits",
    "label_trails",
    "make_rule",
    "rectify",
    "top_class",
    "wrong_rows",
]
