"""What to say where images without labels are distilled too: of their share in a batch, and of losses that read a label."""

from typing import Any

from outgrow.data.mixed import Mixed
from outgrow.machine.files import counted
from outgrow.objective import Objective
from outgrow.training.config import Config


def other_share(config: Config, loader: Any) -> str | None:
    """A warning if the batches of ``loader`` do not have the images that ``config`` asks for; None if they do."""
    if not isinstance(loader, Mixed):
        return None
    batch, share = config.train.batch_size, config.data.unlabelled_share
    labelled, unlabelled = loader.labelled.plan.batch_size, loader.unlabelled.plan.batch_size
    if (labelled + unlabelled, unlabelled) == (batch, max(round(batch * share), 1)):
        return None
    return (
        f"warning: data.unlabelled_share: {share:g} of a batch of {batch} is wanted, got {unlabelled} of {labelled + unlabelled}: "
        f"there are {loader.labelled.plan.num:,} images with a label and {loader.unlabelled.plan.num:,} without"
    )


def unseen(config: Config, num: int) -> str | None:
    """What becomes of ``num`` images without labels where no teacher can tell about them; None where one does."""
    if config.method.preset != "none":
        return None
    return (
        f"data.unlabelled: needs a teacher, got --preset none: the {counted(num, 'image')} without labels are left out, and a "
        "batch has its labelled images alone"
    )


def without_labels(config: Config, objective: Objective) -> str | None:
    """What the terms do that are zero on the images of ``data.unlabelled``; None if there are none."""
    blind = [
        *(f"{name}, which needs a label," for name in objective.needs_label),
        *(f"{name}, whose memory has only labelled images," for name in objective.needs_index),
    ]
    if not blind:
        return None
    counting = [
        name for name in objective.terms if name not in (*objective.needs_label, *objective.needs_index)
    ]
    names = " + ".join(objective.terms)
    divisor = ""
    if objective.normalize == "rows":
        share = 1 - config.data.unlabelled_share
        divisor = (
            f" As all rows of a batch are its divisor, its weight on labelled images is about {share:.2g} of that without "
            "--unlabelled."
        )
    if counting:
        return f"{' and '.join(blind)} adds nothing on images without a label; {' and '.join(counting)} counts them.{divisor}"
    return (
        f"warning: {' and '.join(blind)} adds nothing on images without a label: the student learns nothing from "
        f"--unlabelled.{divisor} Choose a loss that counts all images, such as --loss kd, or add one: "
        f'--loss "kd + {names}"'
    )
