"""What the student should believe: one file per rule, and the split that they rest on."""

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
