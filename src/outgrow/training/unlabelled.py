"""What losses do that read a label, where images without labels are distilled too."""

from outgrow.objective import Objective
from outgrow.training.config import Config


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
