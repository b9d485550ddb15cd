"""A self-contained HTML page for one audit of a teacher."""

from pathlib import Path

from outgrow.report import parts
from outgrow.report.parts import Section
from outgrow.training.audit import AuditRecord


def write_audit_page(path: str | Path, record: AuditRecord, section: Section) -> None:
    """Write the page: the verdicts first, then the task's ``section``, then the conditions."""
    first, *others = record.verdicts
    teacher, data = record.teacher, record.data
    conditions = [
        ("data", (data.source,)),
        ("rows", (parts.rows(data),)),
        ("teacher", (f"{teacher.name}, weights: {teacher.weights}",)),
        ("classes", (f"{teacher.classes}, {teacher.matched}",)),
        ("input", (teacher.sees,)),
        ("views", (parts.augmentation(record.config.data.augment.model_dump(mode="json")),)),
        ("seed", (str(record.config.seed),)),
        ("hardware", (record.hardware,)),
        ("versions", (", ".join(f"{k} {v}" for k, v in record.versions.items()),)),
        *((("commit", (record.commit,)),) if record.commit else ()),
        ("command", (record.command,)),
        ("started", (record.started,)),
        ("time", (f"{record.seconds:.0f} seconds",)),
        ("data fingerprint", (data.fingerprint,)),
    ]
    context = {
        "title": f"Audit of {teacher.name.partition('?')[0]}",
        "first": first,
        "others": others,
        "record": record,
        "section": section.html(),
        "conditions": conditions,
        "config": record.config.to_yaml(),
        "config_of": "this audit",
    }
    parts.write_template(path, "audit.html", context)
