"""The only place where losses, weights, rows and reduction meet.

    total = w_task * task_weight * task
          + sum over terms of weight * (w_easy * its part on right rows + w_hard * on wrong rows)

with ``w_task, w_easy, w_hard`` from the schedule. A term on rows is a sum of row losses times row
weights; a term on images or on the whole batch gets the same weights, so that all add up.
"""

import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from outgrow.knowledge.rectifier import corrected_logits
from outgrow.knowledge.split import check_label, safe_label
from outgrow.losses import Fixture, Loss, kd_fast
from outgrow.losses.across import whole_batch
from outgrow.objective.schedule import Schedule, Weights, make_schedule
from outgrow.objective.terms import Rows, Term, named_terms
from outgrow.outputs import (
    IGNORE,
    Knowledge,
    ObjectiveResult,
    Outputs,
    Rule,
    Target,
    as_outputs,
    as_target,
    lift,
    warn_if_other_labels,
    warn_if_probabilities,
    with_logits,
)

TASK = "task"
"""The name of the task among the terms of a result."""


class _RowWeights(NamedTuple):
    """What multiplies each row's loss, all divisions included; a sum over rows is the term."""

    easy: Float[Tensor, " rows"]
    hard: Float[Tensor, " rows"]

    def scheduled(self, weights: Weights, rows: Rows) -> Float[Tensor, " rows"]:
        if rows == "right":
            return weights.easy * self.easy
        if rows == "wrong":
            return weights.hard * self.hard
        return torch.add(weights.easy * self.easy, self.hard, alpha=weights.hard)


class _Count(NamedTuple):
    """How many rows have a label (the task's divisor), how many take part, and the share without a label. Both are above 0, to
    divide by; ``held`` are as counted."""

    labelled: Tensor
    rows: Tensor
    unlabelled: Tensor
    held: tuple[Tensor, ...]


class Objective(nn.Module):
    """How far the student is from what it should believe, as one number to minimise.

    ``loss`` is a name (``"kd"``, ``"dkd(beta=6)"``), a sum of names (``"kd + 0.8*crd"``), a module, a
    :class:`Term`, or a sequence or mapping of these. ``normalize="rows"`` divides by the batch;
    ``"subset"`` divides right rows by their own number and wrong rows by theirs (the paper's; a few
    wrong rows then weigh as much as all right ones).

    With ``process_group`` its processes share each batch, evenly or not, and the average of their gradients is
    that of one process with the whole batch: divisors count all rows, a loss that relates rows gets those of
    all, and connectors' batch norms have the statistics of all. Every process must call it in every step.

    One ``kd`` beside the cross-entropy goes through a single pass with its gradient in closed form
    where that is possible (``outgrow.losses.kd_fast``: on a CPU or a CUDA device, equal within
    rounding); ``fast=False`` keeps to the plain path, which can be differentiated twice.
    On a CPU the pass is built in C on first use, where there is a compiler and logits are no wider than float32;
    ``fast="eager"`` never builds anything. ``fast="compiled"`` says so where there is no compiler, and on a
    CUDA device asks for ``torch.compile``.

    Learnable parts of the losses (connectors, memories) are parameters of this module: give them to
    the optimiser, after :meth:`setup` where a loss needs one.

    ``label_smoothing`` and ``class_weights`` (one per class) are those of ``torch.nn.functional.cross_entropy`` and
    change the task alone. The sum of the weighted rows is divided by the number of labelled rows, not by the sum of
    their weights; give weights with mean 1 over the training set to keep the size of the task.

    With ``task_rule`` the task is cross-entropy against what that rule makes of the teacher and the label (at temperature 1), not
    against the label: with :class:`outgrow.knowledge.posterior.Posterior`, the task's answer to wrong labels.

    Called as ``objective(student, knowledge, target, progress, task=None) -> ObjectiveResult``. The
    task is cross-entropy over the rows that have a label; a scalar ``task`` of the caller's own replaces it
    and is weighed by ``task_weight`` alone, unless ``schedule_task`` asks for the schedule too.

    >>> from outgrow.knowledge import rectify
    >>> target = torch.tensor([0, 0])
    >>> knowledge = rectify(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), target)
    >>> result = Objective("kd")(torch.zeros(2, 2), knowledge, target, 0.0)
    >>> sorted(result.terms), result.stats["wrong_rate"]
    (['kd', 'task'], tensor(0.5000))
    """

    def __init__(
        self,
        loss: str
        | nn.Module
        | Term
        | Sequence[str | nn.Module | Term]
        | Mapping[str, str | nn.Module | Term] = "kd",
        *,
        schedule: str | Schedule = "constant",
        normalize: Literal["rows", "subset"] = "rows",
        weight: float = 1.0,
        task_weight: float = 1.0,
        schedule_task: bool = False,
        label_smoothing: float = 0.0,
        class_weights: Float[Tensor, " classes"] | Sequence[float] | None = None,
        task_rule: Rule | None = None,
        process_group: dist.ProcessGroup | None = None,
        fast: kd_fast.Fast = True,
    ) -> None:
        super().__init__()
        if normalize not in ("rows", "subset"):
            raise ValueError(
                f"Objective: normalize needs 'rows' or 'subset', got {normalize!r}; 'rows' is the default."
            )
        if fast not in (True, False, "eager", "compiled"):
            raise ValueError(
                f"Objective: fast needs True, False, 'eager' or 'compiled', got {fast!r}; True is the default."
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"Objective: label_smoothing needs a share in [0, 1), got {label_smoothing}; 0.1 is common."
            )
        for name, value in (("weight", weight), ("task_weight", task_weight)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(
                    f"Objective: {name} needs a finite number of at least 0, got {value}; 1 is the default."
                )
        self.terms = {
            name: replace(term, weight=term.weight * weight) for name, term in named_terms(loss).items()
        }
        if TASK in self.terms:
            raise ValueError(
                f"Objective: needs other names for losses than {TASK!r}, which is the task's own, got one of that name; give it "
                "another: Objective({'name': loss})."
            )
        # registered under their names so that parameters are found; a mapping cannot be nn.ModuleDict
        # because "pop" or "keys" would be refused as names
        for name, term in self.terms.items():
            self.add_module(name, term.loss)  # type: ignore[arg-type]
        self.schedule: Schedule = make_schedule(schedule) if isinstance(schedule, str) else schedule
        self.normalize = normalize
        self.task_weight = task_weight
        self.schedule_task = schedule_task
        self.label_smoothing = label_smoothing
        self.task_rule = task_rule
        self.class_weights: Tensor | None
        # not in the state: it follows from the configuration and the labels
        self.register_buffer("class_weights", _class_weights(class_weights), persistent=False)
        self.process_group = process_group
        self.fast = fast
        self._checked = False

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The processes that share each batch; None for this one alone."""
        return self._process_group

    @process_group.setter
    def process_group(self, group: dist.ProcessGroup | None) -> None:
        self._process_group = group
        for module in self.modules():
            if hasattr(type(module), "process_group") and module is not self:
                module.process_group = group  # type: ignore[assignment]

    @property
    def num_processes(self) -> int:
        return 1 if self.process_group is None else dist.get_world_size(self.process_group)

    @property
    def temperature(self) -> float | None:
        """The temperature that the losses declare; None where they declare none, or several."""
        declared = self.temperatures
        return declared.pop() if len(declared) == 1 else None

    @property
    def temperatures(self) -> set[float]:
        """All temperatures that the losses declare."""
        found = (getattr(term.loss, "temperature", None) for term in self.terms.values())
        return {temperature for temperature in found if temperature is not None}

    @property
    def takes_temperature(self) -> bool:
        """Whether a loss softens logits by a temperature that it is given; ``ttm`` follows from its exponent."""
        return any(getattr(term.loss, "softens", False) for term in self.terms.values())

    def inert_under(self, rule: Rule) -> dict[str, str]:
        """The terms that a rule which rewrites logits does not reach, and why."""
        if rule.effect != "rewrite":
            return {}
        reasons = {}
        for name, term in self.terms.items():
            declared = term.loss.inert if isinstance(term.loss, Loss) else {}
            if "logits" not in getattr(term.loss, "reads", ("logits",)):
                reasons[name] = "reads features alone"
            elif reason := declared.get(rule.name, declared.get("all")):
                reasons[name] = reason
        return reasons

    @property
    def reads_features(self) -> bool:
        return any("features" in getattr(term.loss, "reads", ()) for term in self.terms.values())

    @property
    def needs_index(self) -> list[str]:
        """The terms that remember samples by their number in the training set."""
        return [name for name, term in self.terms.items() if getattr(term.loss, "needs_index", False)]

    @property
    def needs_label(self) -> list[str]:
        """The terms that are zero on rows without a label."""
        return [name for name, term in self.terms.items() if getattr(term.loss, "needs_label", False)]

    @property
    def needs_unlabelled(self) -> list[str]:
        """The terms that are zero without rows that have no label."""
        return [name for name, term in self.terms.items() if getattr(term.loss, "needs_unlabelled", False)]

    def teacher_taps(self, features: Collection[str]) -> set[str]:
        """Which of the teacher's ``features`` the losses read in each step, once they are set up."""
        read: set[str] = set()
        for term in self.terms.values():
            if isinstance(term.loss, Loss):
                read |= term.loss.teacher_taps(features)
            elif "features" in getattr(term.loss, "reads", ()):
                read |= set(features)  # a loss of the user's own may read any
        return read

    def prefer_taps(self, names: Sequence[str]) -> None:
        """Losses on feature maps compare the features called ``names``, unless they were told others."""
        for term in self.terms.values():
            if isinstance(term.loss, Loss):
                term.loss.prefer_taps(names)

    def setup(
        self,
        student: Outputs | Tensor,
        teacher: Outputs | Tensor,
        *,
        num_samples: int,
        label: Int[Tensor, " labels"] | None = None,
        index: Int[Tensor, " samples"] | None = None,
    ) -> None:
        """Build the learnable parts of the losses from the outputs of one dry run.

        For losses that remember samples: ``num_samples`` is how many numbers samples may have, ``index``
        the numbers of those that training will show (None: all), and ``label`` the labels of exactly those,
        in the same order.
        """
        student, teacher = as_outputs(student, whose="student"), as_outputs(teacher, whose="teacher")
        fixture = Fixture(student, teacher, num_samples, label, index)
        for term in self.terms.values():
            if isinstance(term.loss, Loss):
                term.loss.setup(fixture)
        self.process_group = self.process_group  # what has been built belongs to it too
        self.to(student.logits.device)

    def forward(
        self,
        student: Outputs | Tensor,
        knowledge: Knowledge,
        target: Target | Tensor,
        progress: float,
        task: Float[Tensor, ""] | None = None,
        *,
        task_factor: Tensor | float = 1.0,
    ) -> ObjectiveResult:
        """``task_factor`` multiplies the task: for a part of a batch that holds another share of its labels than of its rows."""
        student, target = as_outputs(student, whose="student"), as_target(target)
        self._check(student, knowledge, target, progress)
        if task is not None and (not isinstance(task, Tensor) or task.dim() > 0):
            got = f"shape {tuple(task.shape)}" if isinstance(task, Tensor) else type(task).__name__
            raise ValueError(
                f"objective: task needs a tensor with one number (shape ()), got {got}; take the mean over the rows."
            )
        if not self._checked and len(student.logits):
            if task is None and student.num_classes == 1:
                raise ValueError(
                    "objective: needs a logit for each class, got one a row, on which cross-entropy is always 0; give the student two "
                    "logits a row for two classes, or pass a task of your own (task=)."
                )
            warn_if_probabilities(student.logits, whose="student")
            warn_if_other_labels(knowledge.target.label, target.label)
            self._checked = True
        # a caller's autocast would round products and dot products of what has just been lifted
        if torch.is_autocast_enabled(student.logits.device.type):
            with torch.autocast(student.logits.device.type, enabled=False):
                return self._result(student, knowledge, target, progress, task, task_factor)
        return self._result(student, knowledge, target, progress, task, task_factor)

    def _result(
        self,
        student: Outputs,
        knowledge: Knowledge,
        target: Target,
        progress: float,
        task: Tensor | None,
        task_factor: Tensor | float,
    ) -> ObjectiveResult:
        name = self._plain_kd() if self.fast and task is None else None
        if name is not None and kd_fast.applies(student.logits, knowledge, target):
            return self._fused(name, student.logits, knowledge, target, progress, task_factor)
        known, same = knowledge.target, student.num_classes == knowledge.teacher.num_classes
        if same and target.label is known.label and target.partner is known.partner:
            target.in_range_of.add(student.num_classes)  # rectify has looked
        elif same or task is None:
            check_label(target, student.num_classes, whose="student")
        weights = self._scheduled(progress)
        count = self._count(target)
        row_weights = self._row_weights(knowledge, count.rows)
        stats = {"wrong_rate": knowledge.wrong.sum() / count.labelled, "unlabelled": count.unlabelled}
        stats |= _trust_stats(knowledge, target, count.rows)
        scheduled = weights.task if task is None or self.schedule_task else 1.0
        task_scale = task_factor * self.task_weight * scheduled
        safe = _safe(student, knowledge)
        if task is None:
            task = self._cross_entropy(student, knowledge, target, count.labelled)
        terms = {TASK: task_scale * task}
        for name, term in self.terms.items():
            if isinstance(term.loss, Loss):
                term.loss.at(progress)
            value, parts = self._term(term, safe, knowledge, target, row_weights, weights)
            terms[name] = term.scale(progress) * value
            stats |= {f"{name}.{part}": number for part, number in parts.items()}
        total = torch.stack(list(terms.values())).sum()
        if self.process_group is not None:
            # a process without rows moves its learnable parts too: the others wait for their gradients
            total = total + sum(0.0 * p.sum() for p in self.parameters() if p.requires_grad)
        return ObjectiveResult(
            total=total,
            terms={name: value.detach() for name, value in terms.items()},
            stats={name: value.detach() for name, value in stats.items()},
            rows=_rows_of(stats, *count.held),
        )

    def _splits(self, knowledge: Knowledge, term: Term, progress: float) -> bool:
        """Whether right and wrong rows count differently in ``term``."""
        weights = self._scheduled(progress)
        return (
            knowledge.rule.effect == "remove"
            or term.rows != "all"
            or self.normalize == "subset"
            or weights.easy != weights.hard
        )

    def _scheduled(self, progress: float) -> Weights:
        weights = self.schedule(progress)
        if not isinstance(weights, Weights):
            raise ValueError(
                f"objective: the schedule needs to return outgrow.Weights(task, easy, hard), got {type(weights).__name__}; "
                "return outgrow.Weights(...)."
            )
        return weights

    def _plain_kd(self) -> str | None:
        """The name of the only term if it is ``kd`` on all rows, beside plain cross-entropy: what the fast path knows."""
        if len(self.terms) != 1 or self.label_smoothing or self.class_weights is not None or self.task_rule:
            return None
        ((name, term),) = self.terms.items()
        return name if getattr(term.loss, "closed_form", False) and term.rows == "all" else None

    def _fused(
        self,
        name: str,
        logits: Tensor,
        knowledge: Knowledge,
        target: Target,
        progress: float,
        task_factor: Tensor | float,
    ) -> ObjectiveResult:
        """Cross-entropy and one ``kd`` in a single pass; equal to the plain path."""
        term, weights = self.terms[name], self._scheduled(progress)
        temperature = getattr(term.loss, "temperature")  # noqa: B009  (kd's alone)
        on_host = _on_host(logits)
        labelled: Tensor | float
        rows: Tensor | float
        unlabelled: Tensor | float
        if on_host and self.process_group is None:
            # every row has a label, or the fast path would not apply
            labelled, rows, unlabelled = float(len(logits)), float(len(logits)), 0.0
        else:
            labelled, rows, unlabelled, _ = self._count(target)
        scale = term.scale(progress)
        easy, hard = (1 / divisor for divisor in self._divisors(knowledge, rows))
        scales = kd_fast.Scales(
            task_factor * self.task_weight * weights.task / labelled,
            scale * weights.easy * easy,
            scale * weights.hard * hard,
        )
        if not on_host:
            # the pass knows of rows out of the task by one number; out of the rest they are by their weight
            label = torch.where(target.valid, target.label, IGNORE)
            knowledge = replace(knowledge, target=replace(knowledge.target, label=label))
        sums = kd_fast.fused(logits, knowledge, temperature=temperature, scales=scales, fast=self.fast)
        wrong = knowledge.wrong.sum()
        numbers = {
            TASK: scales.task * sums.task,
            name: scales.easy * sums.easy + scales.hard * sums.hard,
            "wrong_rate": (wrong.item() if on_host else wrong) / labelled,
            "unlabelled": unlabelled,
            f"{name}.easy": easy * sums.easy,
            f"{name}.hard": hard * sums.hard,
            **_trust_stats(knowledge, target, rows),
        }
        if on_host:  # one tensor for all: each costs as much
            row = torch.tensor([*map(float, numbers.values())], dtype=kd_fast.compute_type(logits, knowledge))
            stats = dict(zip(numbers, row.unbind(), strict=True))
        else:
            stats = {key: torch.as_tensor(value, device=logits.device) for key, value in numbers.items()}
        terms = {key: stats.pop(key) for key in (TASK, name)}
        total = kd_fast.total(logits, sums.gradient, terms[TASK], terms[name])
        return ObjectiveResult(total, terms, stats, _rows_of(stats, labelled, rows))

    def _term(
        self,
        term: Term,
        student: Outputs,
        knowledge: Knowledge,
        target: Target,
        row_weights: _RowWeights,
        weights: Weights,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A term's value under the schedule; for row losses also its parts, unscheduled."""
        loss = term.loss
        assert isinstance(loss, nn.Module)
        transform = loss.transform if isinstance(loss, Loss) else None
        teacher = with_logits(knowledge.teacher, corrected_logits(knowledge, transform))
        if isinstance(loss, Loss) and transform is not None:
            # the wrapped loss reads what the rule has corrected: transforming that again would undo it
            student, loss = with_logits(student, transform(student.logits)), loss.wrapped
        if knowledge.partial:
            teacher = with_logits(teacher, _masked(teacher.logits, knowledge.weight))
        weight = row_weights.scheduled(weights, term.rows)
        axis = getattr(loss, "axis", "row")
        if axis == "batch":
            if self.process_group is not None:
                student, teacher, target, weight = self._whole(loss, student, teacher, target, weight)
            return loss(student, teacher, target, weight=weight * len(weight)), {}
        value = loss(student, teacher, target)
        if axis == "image":
            return (self._image_weights(weight, target, len(value)) * value).sum(), {}
        _check_row_values(value, weight, loss)
        parts = {}
        if term.rows != "wrong":
            parts["easy"] = (row_weights.easy * value).sum()
        if term.rows != "right":
            parts["hard"] = (row_weights.hard * value).sum()
        schedule = {"easy": weights.easy, "hard": weights.hard}
        total = torch.stack([schedule[part] * number for part, number in parts.items()]).sum()
        return total, parts

    def _whole(
        self, loss: nn.Module, student: Outputs, teacher: Outputs, target: Target, weight: Tensor
    ) -> tuple[Outputs, Outputs, Target, Tensor]:
        """The rows of all processes, and their weights in one whole batch, for a loss that relates rows."""
        assert self.process_group is not None
        own: Collection[str] = student.features
        other: Collection[str] = teacher.features
        logits = True
        if isinstance(loss, Loss):
            logits = "logits" in loss.reads
            own, other = loss.student_taps(own), loss.teacher_taps(other)
        student, teacher, target, weight = whole_batch(
            student,
            teacher,
            target,
            weight,
            self.process_group,
            logits=logits,
            student_taps=own,
            teacher_taps=other,
        )
        return student, teacher, target, weight / self.num_processes  # they were divided by the mean share

    def _image_weights(
        self, row_weight: Float[Tensor, " rows"], target: Target, num_images: int
    ) -> Float[Tensor, " images"]:
        """What multiplies each image's value, all divisions included: its row's weight, or the mean over its
        rows, and the mean over all rows where it has none."""
        if target.image is None:
            if len(row_weight) != num_images:
                raise ValueError(
                    f"objective: needs to know which image each row belongs to, got {len(row_weight)} rows and "
                    f"{num_images} images; pass Target(..., image=...)."
                )
            return row_weight
        sizes = row_weight.new_tensor([len(row_weight), num_images])
        total, rows, images = self._global(torch.cat([row_weight.sum()[None], sizes])).unbind()
        everywhere = torch.where(rows > 0, total, torch.ones_like(total))
        zeros = row_weight.new_zeros(num_images)
        summed = zeros.index_add(0, target.image, row_weight)
        count = zeros.index_add(0, target.image, torch.ones_like(row_weight))
        share = torch.where(count > 0, rows * summed / count.clamp_min(1), everywhere)
        return share / images.clamp_min(1 / self.num_processes)

    def _count(self, target: Target) -> "_Count":
        """How many rows there are, over all processes their mean."""
        both = self._global(torch.stack((target.valid, target.takes_part)).sum(dim=1))
        labelled, rows = both.clamp_min(1 / self.num_processes).unbind()
        return _Count(labelled, rows, (both[1] - both[0]) / rows, both.unbind())

    def _row_weights(self, knowledge: Knowledge, count: Tensor) -> _RowWeights:
        hard = knowledge.weight * knowledge.wrong
        per_easy, per_hard = self._divisors(knowledge, count)
        return _RowWeights((knowledge.weight - hard) / per_easy, hard / per_hard)

    def _divisors(self, knowledge: Knowledge, count: Tensor | float) -> tuple[Tensor | float, Tensor | float]:
        """What the sums over right and over wrong rows are divided by."""
        if self.normalize == "rows":
            return count, count
        hard = knowledge.weight * knowledge.wrong
        num_easy, num_hard = (knowledge.weight - hard).sum(), hard.sum()
        if self.process_group is not None:
            num_easy, num_hard = self._global(torch.stack((num_easy, num_hard))).unbind()
        return _divisor(num_easy), _divisor(num_hard)

    def _global(self, count: Tensor) -> Tensor:
        """``count`` averaged over the processes: gradients are averaged over them too."""
        if self.process_group is None:
            return count
        count = count.clone() if count.is_floating_point() else count.to(torch.float32)
        dist.all_reduce(count, group=self.process_group)
        return count / dist.get_world_size(self.process_group)

    def _cross_entropy(
        self, student: Outputs, knowledge: Knowledge, target: Target, count: Tensor
    ) -> Float[Tensor, ""]:
        logits, believed = lift(student.logits), lift(knowledge.teacher.logits)
        if knowledge.partial:
            logits, believed = _masked(logits, target.valid), _masked(believed, target.valid)
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        if weights is not None and len(weights) != logits.shape[1]:
            raise ValueError(
                f"objective: class_weights needs one weight per class, {logits.shape[1]}, got {len(weights)}; give them in "
                "the order of the student's logits."
            )
        rule, smoothing = self.task_rule, self.label_smoothing

        def row_losses(label: Tensor, reduction: str) -> Tensor:
            wanted = torch.where(target.valid, label, IGNORE)
            if rule is not None and len(label):
                ruled = rule(believed, safe_label(label, believed.shape[1]), temperature=1.0)
                soft = (1 - smoothing) * ruled.softmax(dim=1).to(logits.dtype) + smoothing / logits.shape[1]
                # a row without a label has a target of zeros, which is worth nothing
                wanted = soft * target.valid[:, None]
            return F.cross_entropy(
                logits,
                wanted,
                weight=weights,
                reduction=reduction,
                ignore_index=IGNORE,
                label_smoothing=smoothing if rule is None else 0.0,
            )

        if target.partner is None or target.mix is None:
            return row_losses(target.label, "sum") / count
        own, partner = row_losses(target.label, "none"), row_losses(target.partner, "none")
        blend = target.mix * own + (1 - target.mix) * partner
        return (blend * target.valid).sum() / count

    def _check(self, student: Outputs, knowledge: Knowledge, target: Target, progress: float) -> None:
        if not isinstance(knowledge, Knowledge):
            raise ValueError(
                f"objective: needs knowledge, got {type(knowledge).__name__}; pass what the rectifier returns: "
                "knowledge = rectify(teacher(images), target)."
            )
        one = isinstance(progress, numbers.Real) or (isinstance(progress, Tensor) and progress.numel() == 1)
        if not one or not 0 <= progress <= 1:
            raise ValueError(
                f"objective: needs progress in [0, 1], got {progress}; pass completed epochs over all epochs."
            )
        rows, known = len(student.logits), len(knowledge.wrong)
        if not rows == known == len(target.label):
            raise ValueError(
                f"objective: needs one row for student, teacher and target, got {rows}, {known} and "
                f"{len(target.label)}; pass all three for the same batch."
            )
        # a backbone without a classifier gets no row wrong
        other_classes = knowledge.teacher.num_classes not in (0, student.num_classes)
        for name, term in self.terms.items():
            reads_logits = "logits" in getattr(term.loss, "reads", ("logits",))
            if reads_logits and student.num_classes != knowledge.teacher.num_classes:
                raise ValueError(
                    f"objective: the loss {name!r} needs teacher and student to share their classes, got "
                    f"{knowledge.teacher.num_classes} and {student.num_classes}; map the teacher's classes by name, "
                    "or use outgrow.CorrectedTeacher with a BiasCorrection to the student's classes."
                )
            if other_classes and self._splits(knowledge, term, progress):
                raise ValueError(
                    f"objective: needs a teacher of the student's {student.num_classes} classes to tell the rows that it gets wrong, "
                    f"got one of {knowledge.teacher.num_classes}; use preset 'kd' with this loss, or outgrow.CorrectedTeacher "
                    "with a BiasCorrection to the student's classes."
                )
            own = getattr(term.loss, "temperature", None)
            if None not in (own, knowledge.temperature) and own != knowledge.temperature:
                raise ValueError(
                    f"objective: the loss {name!r} reads the teacher at temperature {own}, got knowledge rectified at "
                    f"{knowledge.temperature}; build both with outgrow.preset(..., temperature={own}), or pass "
                    f"Rectifier(..., temperature={own})."
                )


def _rows_of(
    stats: Collection[str], labelled: Tensor | float, rows: Tensor | float
) -> dict[str, Tensor | float]:
    """Of how many rows each of ``stats`` is a share."""
    numbers = {"wrong_rate": labelled, "unlabelled": rows, "trust": rows, "left_out": rows}
    return {name: number for name, number in numbers.items() if name in stats}


def _trust_stats(knowledge: Knowledge, target: Target, rows: Tensor | float) -> dict[str, Tensor]:
    """The mean trust in the rows that take part, and the share of rows with none; empty where all are trusted alike."""
    if knowledge.trust is None:
        return {}
    left_out = (knowledge.trust == 0) & target.takes_part
    return {"trust": (knowledge.trust * target.takes_part).sum() / rows, "left_out": left_out.sum() / rows}


def _class_weights(given: Tensor | Sequence[float] | None) -> Float[Tensor, " classes"] | None:
    """``given`` as a tensor; ``ValueError`` if it is not one finite number of at least 0 for each class."""
    if given is None:
        return None
    try:
        weights = given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.get_default_dtype())
    except (TypeError, ValueError):
        raise ValueError(
            f"Objective: class_weights needs one number per class, got {given!r}; give them in the order of the "
            "student's logits."
        ) from None
    if weights.dim() != 1:
        raise ValueError(
            f"Objective: class_weights needs one number per class, got shape {tuple(weights.shape)}; give them in the "
            "order of the student's logits."
        )
    if not weights.is_meta and (bad := ~((weights >= 0) & weights.isfinite())).any():
        number = int(bad.nonzero()[0])
        raise ValueError(
            f"Objective: class_weights needs finite numbers of at least 0, got {float(weights[number]):g} for class "
            f"{number}; 0 leaves a class out of the task."
        )
    return weights


def _on_host(logits: Tensor) -> bool:
    """Whether looking at values costs nothing."""
    return logits.device.type == "cpu"


def _divisor(total: Tensor) -> Tensor | float:
    """``total``, or 1 where there is nothing to divide; a number where looking costs nothing."""
    if total.device.type == "cpu":
        return total.item() or 1.0
    return torch.where(total > 0, total, torch.ones_like(total))


def _safe(student: Outputs, knowledge: Knowledge) -> Outputs:
    """The student's logits, lifted, with zeros in the rows that count for nothing."""
    logits = lift(student.logits)
    return with_logits(student, _masked(logits, knowledge.weight) if knowledge.partial else logits)


def _masked(logits: Tensor, weight: Tensor) -> Tensor:
    """Zeros where the weight is zero, *before* the maths: an infinity masked afterwards still poisons."""
    return torch.where((weight > 0)[:, None], logits, torch.zeros_like(logits))


def _check_row_values(value: Tensor, weight: Tensor, loss: nn.Module) -> None:
    if value.shape != weight.shape:
        raise ValueError(
            f"{type(loss).__name__}: needs one value for each of {len(weight)} rows, got shape {tuple(value.shape)}; "
            "return unreduced values, or declare axis = 'image' or 'batch'."
        )
