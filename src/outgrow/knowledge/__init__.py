"""Correct the teacher's logits: the split into right and wrong rows, one file per rule, and how far to trust a row."""

from outgrow.knowledge.rectifier import Rectifier, corrected_logits, label_trails, make_rule, rectify
from outgrow.knowledge.registry import RULES
from outgrow.knowledge.split import top_class, wrong_rows
from outgrow.knowledge.trust import TRUSTS, Confidence, Reliability, Trust, make_trust

__all__ = [
    "RULES",
    "TRUSTS",
    "Confidence",
    "Rectifier",
    "Reliability",
    "Trust",
    "corrected_logits",
    "label_trails",
    "make_rule",
    "make_trust",
    "rectify",
    "top_class",
    "wrong_rows",
]
