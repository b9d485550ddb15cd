"""The table loss x rule: every cell run for real, against the literal references, and compared with the page.

A cell is the gradient of the distillation term alone (``task_weight=0``) on a batch with right and wrong
rows. Its fact is measured: the rule *changes* the gradient, or *removes* the wrong rows, or is *inert*, which
needs a reason that the loss or the rule declares. ``python -m tests.objective.test_table`` writes the page; the tests
only read it.
"""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from outgrow import UNLABELLED, Objective, Outputs, Rectifier, Target
from outgrow.knowledge import RULES
from outgrow.losses import LOSSES
from tests import contract
from tests.reference import features, losses, rules

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods" / "table.md"
RULE_NAMES = [name for name, rule in RULES.items() if rule().name == name]
"""Each rule once, not under the names that papers gave it again."""
PROGRESS = 0.7
"""Late enough for every loss's own ramp to have begun (the second teacher of ``sld``)."""
ROWS, WRONG = 8, 5
VISIBLE = 1e-2
"""By how much of its length a gradient must move for a change to count (the least is 0.025: dkd, boost)."""
FEATURES_ONLY = "reads features only, and a rule corrects logits"
UNCHANGED = "the rule leaves the teacher as it is"


class Fact(NamedTuple):
    word: str
    reason: str = ""


class Gradient(NamedTuple):
    """Value of the term and gradient in the student's logits and features, zero where there is none."""

    value: Tensor
    leaves: list[Tensor]


def make_batch(name: str = "") -> tuple[Outputs, Outputs, Target, Tensor]:
    """Student, teacher, target and which rows are wrong: labels that come second, third, ... in their rows."""
    student, teacher = contract.outputs(ROWS), contract.outputs(ROWS, seed=5)
    order = teacher.logits.argsort(dim=1, descending=True)
    rank = torch.tensor([1, 2, 3, 4, 1, 0, 0, 0])
    label = order[torch.arange(ROWS), rank]
    wrong = rank > 0
    assert wrong.sum() == WRONG
    if name in contract.LACKING:
        label[-2:] = UNLABELLED
    return student, teacher, Target(label, index=torch.arange(3, 3 + ROWS)), wrong


def gradient_of(value: Tensor, leaves: list[Tensor]) -> Gradient:
    grads = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
    filled = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]
    return Gradient(value.detach(), filled)


# --- the library ----------------------------------------------------------------------------------


def temperature_of(name: str) -> float:
    return contract.loss(name).temperature or 4.0  # as presets: several, or none, leave the rule at 4


@functools.cache
def library(name: str, rule: str) -> Gradient:
    """The term under Objective, with the loss as it evaluates: no mask is drawn, statistics stand still."""
    student, teacher, target, wrong = make_batch(name)
    student, leaves = contract.leaves(student)
    objective = Objective(contract.loss(name), task_weight=0.0).eval()
    knowledge = Rectifier(rule, temperature_of(name))(teacher, target)
    assert torch.equal(knowledge.wrong, wrong)
    torch.manual_seed(7)  # as contract.call
    result = objective(student, knowledge, target, PROGRESS)
    assert set(result.terms) == {"task", next(iter(objective.terms))}
    assert result.terms["task"] == 0
    return gradient_of(result.total, leaves)


# --- the literal references -----------------------------------------------------------------------


def by_hand(logits: Tensor, label: Tensor, wrong: Tensor, rule: str, temperature: float) -> Tensor:
    """The teacher's logits after the literal rule, row by row through probabilities."""
    rows = []
    extra = {"temperature": temperature} if rule in ("boost", "posterior") else {}
    for z, y, is_wrong in zip(logits, label.tolist(), wrong.tolist(), strict=True):
        if is_wrong:
            q = rules.RULES[rule](rules.softmax(z.tolist(), temperature), y, **extra)
            z = temperature * torch.tensor(q, dtype=torch.float64).log()
        rows.append(z)
    return torch.stack(rows)


def literal(name: str, rule: str) -> Gradient:
    """The literal rule, then the literal loss; removed rows have weight zero, or are not there at all."""
    student, teacher, target, wrong = make_batch(name)
    student, leaves = contract.leaves(student)
    weight = torch.where(wrong, 0.0, 1.0) if rule == "drop" else torch.ones(ROWS)
    keep = weight > 0
    temperature = temperature_of(name)
    if name == "standardize":
        own = torch.stack([losses.zscore(s) for s in student.logits])
        z = torch.stack([losses.zscore(z) for z in teacher.logits])
        corrected = by_hand(z, target.label, wrong, rule, temperature)
        rows = losses.kd(own, corrected, target.label, temperature)
        return gradient_of((weight * rows).mean(), leaves)
    corrected = by_hand(teacher.logits, target.label, wrong, rule, temperature)
    if name in losses.ROWS:
        rows = losses.ROWS[name](student.logits, corrected, target.label)
        return gradient_of((weight * rows).mean(), leaves)
    if name in losses.BATCH:
        value = losses.BATCH[name](student.logits[keep], corrected[keep], target.label[keep])
        return gradient_of(value * keep.sum() / ROWS, leaves)
    if name in features.BATCH:
        own, other = student.features["penultimate"], teacher.features["penultimate"]
        return gradient_of(features.BATCH[name](own[keep], other[keep]) * keep.sum() / ROWS, leaves)
    if name in features.IMAGE:
        images, leaves = literal_images(name)
        return gradient_of((weight * images).mean(), leaves)
    return module(name, corrected, weight)


@functools.cache
def literal_images(name: str) -> tuple[Tensor, list[Tensor]]:
    """Each image's value; the same under every rule, since logits are not read."""
    student, teacher, _, _ = make_batch()
    student, leaves = contract.leaves(student)
    built = contract.loss(name).eval()
    state = {**dict(built.named_buffers()), **dict(built.named_parameters())}
    stages = features.STAGES.get(name, ["layer1", "layer2"])
    maps = [pair.maps(student, teacher) for pair in built.pairs]
    assert len(maps) == len(stages)
    seen = [[contract.outputs(4, seed=5).features[stage]] for stage in stages]  # contract.loss's dry run
    own, other = [a for a, _ in maps], [b for _, b in maps]
    return features.IMAGE[name](own, other, state, False, seen), leaves


def module(name: str, corrected: Tensor, weight: Tensor) -> Gradient:
    """Memories: the loss itself, without Objective and Rectifier, on the logits corrected by hand."""
    assert name == "crd", "tests/losses/test_crd.py has its literal reference; what is new needs one"
    student, teacher, target, _ = make_batch()
    student, leaves = contract.leaves(student)
    built = contract.loss(name).eval()
    believed = Outputs(corrected, teacher.features)
    return gradient_of(contract.call(built, student, believed, target, weight.double()), leaves)


# --- the facts ------------------------------------------------------------------------------------


def declared(name: str, rule: str) -> str:
    """Why the rule makes no difference to the loss, as both declare it; empty where it should make one."""
    effect, loss = RULES[rule]().effect, LOSSES[name]()
    if effect != "rewrite":
        return UNCHANGED if effect == "none" else ""
    if "logits" not in loss.reads:
        return FEATURES_ONLY
    return loss.inert.get(rule, loss.inert.get("all", ""))


def measured(name: str, rule: str) -> Fact:
    """What the rule does to the gradient of the term, compared with ``identity``."""
    plain, mine = library(name, "identity"), library(name, rule)
    size = torch.cat([x.flatten() for x in plain.leaves]).norm()
    moved = torch.cat([(a - b).flatten() for a, b in zip(mine.leaves, plain.leaves, strict=True)]).norm()
    assert size > 1e-6, f"{name}: a gradient of nearly nothing shows nothing"
    if all(torch.equal(a, b) for a, b in zip(mine.leaves, plain.leaves, strict=True)):
        return Fact("inert", declared(name, rule) or "undeclared")
    assert moved > VISIBLE * size, (
        f"{name} under {rule} moves by {float(moved / size):.1e}: neither not at all nor visibly"
    )
    if RULES[rule]().effect != "remove":
        return Fact("changes")
    _, _, _, wrong = make_batch()
    gone = all((leaf[wrong] == 0).all() for leaf in mine.leaves)
    # where statistics of the batch are shared, a row that counts for nothing still moves the others
    return Fact("removes") if gone or LOSSES[name]().batch_statistics else Fact("changes")


def render(facts: dict[tuple[str, str], Fact]) -> str:
    reasons = list(dict.fromkeys(fact.reason for fact in facts.values() if fact.reason))
    mark = {reason: "abcdefgh"[i] for i, reason in enumerate(reasons)}
    lines = [
        "# Every loss under every rule",
        "",
        "Generated by `python -m tests.objective.test_table` and held by `tests/objective/test_table.py`: do not edit.",
        "",
        "The gradient of the distillation term alone (no cross-entropy), default arguments, on a batch of "
        f"{ROWS} rows",
        f"of which the teacher gets {WRONG} wrong, compared with the literal references of `tests/reference` "
        "(`crd`: with",
        "its own module on logits corrected by hand) and with rule `identity`.",
        "",
        f"- `changes`: the gradient moves, by more than {VISIBLE:g} of its length.",
        "- `removes`: the wrong rows count for nothing; a loss that relates rows is that of the rows left.",
        "- `inert`: the gradient is the same, bit for bit, for a declared reason:",
        *(f"  ({letter}) {reason}." for reason, letter in mark.items()),
        "",
        "`revise`, `calibrate` and `threshold` are other names of `lead`. `Term(rows=...)` and schedules weigh "
        "wrong rows for",
        "every loss, also where a rule is inert.",
        "",
        "| loss | " + " | ".join(f"`{rule}`" for rule in RULE_NAMES) + " |",
        "|---" * (len(RULE_NAMES) + 1) + "|",
    ]
    for name in LOSSES:
        cells = []
        for rule in RULE_NAMES:
            fact = facts[name, rule]
            cells.append(f"{fact.word} ({mark[fact.reason]})" if fact.reason else fact.word)
        lines.append(f"| [`{name}`]({name}.md) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@functools.cache
def committed() -> dict[tuple[str, str], Fact]:
    """The page, read back."""
    text = PAGE.read_text()
    reasons = dict(re.findall(r"^  \((\w)\) (.*)\.$", text, flags=re.MULTILINE))
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    header = [cell.strip().strip("`") for cell in rows[0]]
    facts = {}
    for row in rows[1:]:
        name = row[0].strip().split("`")[1]
        for rule, cell in zip(header[1:], row[1:], strict=True):
            word, _, letter = cell.strip().partition(" (")
            assert (name, rule) not in facts
            facts[name, rule] = Fact(word, reasons[letter[0]] if letter else "")
    return facts


CELLS = [(name, rule) for name in LOSSES for rule in RULE_NAMES]


def test_the_table_is_complete():
    assert len(CELLS) > 200
    assert {RULES[alias]().name for alias in RULES} == set(RULE_NAMES)
    assert list(committed()) == CELLS
    assert {fact.word for fact in committed().values()} == {"changes", "inert", "removes"}
    assert PAGE.read_text() == render(committed())


@pytest.mark.parametrize("name, rule", CELLS)
def test_cell(name, rule):
    ours, theirs = library(name, rule), literal(name, rule)
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-7, atol=1e-10)
    for a, b in zip(ours.leaves, theirs.leaves, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)
    fact = measured(name, rule)
    assert fact == committed()[name, rule]
    assert (fact.word == "inert") == bool(declared(name, rule))
    assert fact.reason == declared(name, rule)


if __name__ == "__main__":
    facts = {cell: measured(*cell) for cell in CELLS}
    PAGE.write_text(render(facts))
    words = [fact.word for fact in facts.values()]
    print({word: words.count(word) for word in dict.fromkeys(words)}, PAGE)
