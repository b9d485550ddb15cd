"""Is this teacher worth listening to? What ``outgrow audit`` measures of a classifier.

measure.py        the teacher's answers, and what they are worth before and after a correction
normalisation.py  which normalisation the weights seem to want
label_errors.py   training images whose label may be wrong
verdicts.py       what the numbers mean, in words
page.py           the section of the page
audit.py          all of it, in that order
"""

from outgrow.classification.audit.audit import audit

__all__ = ["audit"]
