"""The one-line grammar of losses, rules and schedules: arguments by position and by name."""

import inspect
import re

import pytest

from outgrow import Objective, spec
from outgrow.knowledge import RULES, make_rule
from outgrow.losses import DETECTOR_LOSSES, LOSSES, make_loss
from outgrow.objective import SCHEDULES, make_schedule, preset

FACTORIES = {
    **{("loss", name): factory for name, factory in {**LOSSES, **DETECTOR_LOSSES}.items()},
    **{("rule", name): factory for name, factory in RULES.items()},
    **{("schedule", name): factory for name, factory in SCHEDULES.items()},
}
MAKE = {"loss": make_loss, "rule": make_rule, "schedule": make_schedule}


def parameters(factory):
    return list(inspect.signature(factory).parameters.values())


WITH = [key for key, factory in FACTORIES.items() if parameters(factory)]


def test_the_set_is_complete():
    assert len(FACTORIES) == len(LOSSES) + len(DETECTOR_LOSSES) + len(RULES) + len(SCHEDULES)
    assert {("loss", "kd"), ("loss", "standardize"), ("rule", "lead"), ("schedule", "step")} <= set(WITH)
    assert len(WITH) > 30


@pytest.mark.parametrize("kind, name", WITH)
def test_places_are_the_constructors(kind, name):
    """Every number of arguments by place, the rest by name."""
    known = [p.name for p in parameters(FACTORIES[kind, name])]
    for count in range(len(known) + 1):
        parts = [str(100 + i) if i < count else f"{key}={100 + i}" for i, key in enumerate(known)]
        (call,) = spec.parse(f"{name}({', '.join(parts)})")
        bound = spec.bind(FACTORIES[kind, name], call, kind=kind)
        assert bound.positional == ()
        assert bound.arguments == {key: 100 + i for i, key in enumerate(known)}


@pytest.mark.parametrize("kind, name", WITH)
def test_built_by_place_as_by_name(kind, name):
    values = [p.default for p in parameters(FACTORIES[kind, name])]
    assert inspect.Parameter.empty not in values
    by_place = MAKE[kind](f"{name}({', '.join(map(repr, values))})")
    names = [p.name for p in parameters(FACTORIES[kind, name])]
    by_name = MAKE[kind](f"{name}({', '.join(f'{k}={v!r}' for k, v in zip(names, values, strict=True))})")
    if kind == "schedule":
        points = [i / 20 for i in range(21)]
        assert [by_place(p) for p in points] == [by_name(p) for p in points]
    else:
        assert type(by_place) is type(by_name)
        assert repr(by_place) == repr(by_name)


@pytest.mark.parametrize("kind, name", list(FACTORIES))
def test_one_too_many(kind, name):
    number = len(parameters(FACTORIES[kind, name]))
    known = ", ".join(p.name for p in parameters(FACTORIES[kind, name])) or "none"
    text = f"{name}({', '.join('1' for _ in range(number + 1))})"
    message = (
        f"{kind} {name}: needs at most {number} argument{'' if number == 1 else 's'} ({known}), got {number + 1}; "
        "remove the surplus ones."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MAKE[kind](text)


@pytest.mark.parametrize("kind, name", WITH)
def test_by_place_and_by_name(kind, name):
    first = parameters(FACTORIES[kind, name])[0].name
    message = f"{kind} {name}: needs each argument once, got {first} both by position and by name; remove one of the two."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MAKE[kind](f"{name}(1, {first}=2)")


def test_examples():
    assert make_loss("kd(4)").temperature == 4.0
    assert isinstance(make_loss("kd(4)").temperature, float)
    assert make_rule("lead(0.3)") == make_rule("lead(margin=0.3)")
    assert make_schedule("step(0.25)")(0.3).hard == 1.0
    dkd = make_loss("dkd(2, beta=6)")
    assert (dkd.alpha, dkd.beta, dkd.temperature) == (2.0, 6.0, 4.0)


@pytest.mark.parametrize("base", ["dkd(2)", "dkd(alpha=2)"])
def test_nested(base):
    for text in (f"standardize('{base}')", f"standardize({base})", f"standardize(base='{base}')"):
        built = make_loss(text)
        assert (built.base.alpha, built.base.beta, built.temperature) == (2.0, 8.0, 2.0)
    assert make_loss(f"standardize({base}, 3)").base.temperature == 3.0


def test_a_temperature_by_place_is_a_temperature():
    """What hands a temperature on sees it, wherever it was written."""
    assert make_loss("kd(2)", temperature=8.0).temperature == 2.0
    assert make_loss("dkd(1, 8, 2)", temperature=8.0).temperature == 2.0
    with pytest.warns(UserWarning, match="the temperature 3 replaces the"):
        _, objective = preset("kd", loss="kd(2) + 0.5*dkd(2, 6, 1)", temperature=3.0)
    assert objective.temperature == 3.0
    assert (objective.dkd.alpha, objective.dkd.beta) == (2.0, 6.0)


def test_a_call_reads_as_it_was_written():
    for text in ("kd", "kd(4)", "0.5*dkd(2, beta=6)", "standardize('dkd(2)', temperature=3)"):
        (call,) = spec.parse(text)
        assert str(call) == text
        assert spec.parse(str(call)) == [call]


@pytest.mark.parametrize("text", ["kd(*x)", "kd(**x)", "kd(temperature=4, temperature=5)", "kd(1 + x)"])
def test_only_literals(text):
    with pytest.raises(ValueError, match=r"needs names with arguments, such as .* got .*; quote the whole"):
        spec.parse(text)


@pytest.mark.parametrize(
    "text, names",
    [
        ("kd + kdsvd + kd(temperature=4)", ["kd", "kdsvd", "kd_2"]),
        ("kdsvd + kd + kd(2)", ["kdsvd", "kd", "kd_2"]),
        ("kd + kd(2) + kd(3) + kdsvd + kdsvd(2)", ["kd", "kd_2", "kd_3", "kdsvd", "kdsvd_2"]),
        ("sp + rc + sp + rc + sp", ["sp", "rc", "sp_2", "rc_2", "sp_3"]),
    ],
)
def test_terms_of_one_loss_are_counted(text, names):
    assert list(Objective(text).terms) == names


@pytest.mark.parametrize(
    "kind, text",
    [("rule", "posterior(noise=x)"), ("rule", "lead([1])"), ("loss", "kd(x)"), ("loss", "ppi(x)")],
)
def test_a_word_for_a_number(kind, text):
    with pytest.raises(ValueError, match=rf"{kind} \w+: needs a number for \w+, got .*; write such as \w+\("):
        MAKE[kind](text)


@pytest.mark.parametrize(
    "text, needed",
    [
        ("crd(dim=64.5)", "a whole number for dim, got 64.5; write such as crd(dim=2)"),
        ("crd(negatives='8')", "a whole number for negatives, got '8'"),
        ("at(power=2.5)", "a whole number for power, got 2.5"),
        ("slam(top=2.5)", "a whole number for top, got 2.5"),
        ("kd(temperature=1e999)", "a number for temperature, got inf"),
        ("kd(temperature=True)", "a number for temperature, got True"),
        (
            "sld(temperatures=4)",
            "a list of numbers for temperatures, got 4; write such as sld(temperatures=(1, 2))",
        ),
        ("sld(temperatures=('a',))", "a list of numbers for temperatures, got ('a',)"),
        ("mgd(student=3)", "a name, or a list of names for student, got 3"),
        ("rkd(student=3)", "a name for student, got 3"),
        ("standardize(3)", "a name for base, got 3"),
        ("mgd(student=[3])", "a name, or a list of names for student, got [3]"),
    ],
)
def test_what_cannot_be_the_value(text, needed):
    """It would be a traceback of the constructor, or of the first step."""
    with pytest.raises(ValueError, match=rf"^loss \w+: needs {re.escape(needed)}"):
        make_loss(text)


def test_a_whole_number_may_be_written_with_a_point():
    built = make_loss("crd(dim=64.0)")
    assert (built.dim, type(built.dim)) == (64, int)
    assert make_loss("slam(top=None)").top is None
    assert make_loss("mgd(student=['layer1', 'layer2'], teacher='layer3')").teacher_paths == "layer3"


@pytest.mark.parametrize("text", ["None*kd", "'a'*kd", "[1]*kd", "kd({[]: 1})"])
def test_what_is_no_literal_is_no_traceback(text):
    with pytest.raises(ValueError, match=r"needs names with arguments, such as .* got .*; quote the whole"):
        spec.parse(text)


def test_an_unknown_name_is_sent_to_the_list_that_there_is():
    with pytest.raises(
        ValueError, match=r"loss: needs one of kd, .*; got 'xyz'; `outgrow list losses` describes them"
    ):
        make_loss("xyz")
