"""A teacher in the classes of the data: by name, by position, or by ``data.class_map``."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from outgrow.classification.data import RunData
from outgrow.data.class_map import match_through
from outgrow.data.classes import Match, match_classes
from outgrow.models import Network
from outgrow.models.structure import has_head
from outgrow.teacher import BaseTeacher, GroupedClasses, SelectedClasses
from outgrow.teacher.teacher import grouped


def match_teacher(network: Network, data: RunData) -> Match:
    """The data's classes among those of a teacher. A teacher with exactly the data's classes, such as one that was
    trained on them, needs no map, and a backbone without a classifier has no classes."""
    if data.class_map is None or network.classes == data.classes or not has_head(network):
        return match_classes(network.classes, network.num_classes, data.classes)
    who = f"--teacher {network.name}"
    return match_through(data.class_map, network.classes, network.num_classes, data.classes, who=who)


def in_data_classes(teacher: BaseTeacher, match: Match) -> BaseTeacher:
    """``teacher`` with the data's classes in their order; itself if it has other classes."""
    if match.groups is not None:
        return GroupedClasses(teacher, match.groups)
    return teacher if match.columns is None else SelectedClasses(teacher, match.columns)


def logits_in_data_classes(
    match: Match,
) -> Callable[[Float[Tensor, "rows own"]], Float[Tensor, "rows classes"]] | None:
    """From a teacher's own logits to those of the data's classes; None if it has other classes."""
    groups, columns = match.groups, match.columns
    if groups is not None:
        return lambda logits: grouped(logits, groups)
    return None if columns is None else lambda logits: logits[:, list(columns)]
