"""Correct the teacher's logits: the split into right and wrong rows, one file per rule, and how far to trust a row.

split.py         which rows the teacher gets wrong
base.py          the base class of rules
registry.py      all rules by name
rectifier.py     the teacher's outputs and the labels -> Knowledge
trust.py         a factor of each row's weight

Each other file is one rule.
"""

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
