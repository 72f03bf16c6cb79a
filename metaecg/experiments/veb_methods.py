"""The methods that `veb_fewshot` puts side by side: how beats are chosen, and what they change."""

from dataclasses import dataclass, replace
from typing import Literal

from metaecg.checks import did_you_mean
from metaecg.errors import ConfigError

ADAPTS = {
    "zero-shot": (None, "the base as it is"),
    "labels": (None, "the base; labelled beats count for beats like them"),
    "head": ("head", "last layer fine-tuned"),
    "full": ("full", "all weights fine-tuned"),
    "lora": ("lora", "low-rank adapters fine-tuned"),
    "h-tuning": ("h-tuning", "low-rank adapters, biases and head by H-Tuning"),
}
SUPPORTS = {
    "time": "first beats of each class, judged on what follows them",
    "active": "beats that the library asks for, judged on all others",
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table."""

    adapt: str | None
    """Method of `Personalizer`; None: the base as it is."""
    support: Literal["none", "time", "active"]
    """``none``: no labels, judged on whole recordings."""
    query: Literal["own", "time"] = "own"
    """``time``: judged on the test beats of the support ``time`` that nobody labelled."""
    is_guarded: bool = True
    """Whether a personalization may be refused."""
    uses_labels: bool = True
    """Whether labelled beats count for beats like them."""
    by_name: bool = False
    """Run only where it is named."""
    description: str

    @property
    def is_personal(self) -> bool:
        """Whether labels of the patient change anything."""
        return self.adapt is not None or self.uses_labels


def _table() -> dict[str, Method]:
    found = {
        "global": Method(
            adapt=None,
            support="none",
            uses_labels=False,
            description="no label of the patient; whole recordings",
        )
    }
    for name, (adapt, words) in ADAPTS.items():
        for support, prefix in (("time", ""), ("active", "active+")):
            found[f"{prefix}{name}"] = Method(
                adapt=adapt,
                support=support,
                uses_labels=name != "zero-shot",
                by_name=adapt == "h-tuning",
                description=f"{words}; {SUPPORTS[support]}",
            )
    found = dict(sorted(found.items(), key=lambda item: item[1].support != "none"))
    for name, method in list(found.items()):
        if method.support == "active":
            text = f"{method.description.split(';')[0]}; {SUPPORTS['active'].split(',')[0]}, judged on "
            text += "the test beats of the first beats in time"
            found[f"{name}@later"] = replace(method, query="time", description=text)
    for name in ("head", "full", "lora"):
        text = f"{found[name].description}; never refused"
        found[f"{name}+unguarded"] = replace(
            found[name], is_guarded=False, by_name=True, description=text
        )
        text = f"{found[name].description}; labelled beats change the network alone"
        found[f"{name}+network-only"] = replace(
            found[name], uses_labels=False, by_name=True, description=text
        )
    return found


METHODS = _table()


def choose_methods(names: list[str] | None) -> dict[str, Method]:
    """Return the methods of `names` in the table's order; every unknown name is reported.

    No names stand for all methods but those with `by_name`.
    """
    if names is None:
        return {name: method for name, method in METHODS.items() if not method.by_name}
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ConfigError(
            [f"methods has {n!r}; expected {did_you_mean(n, METHODS)}" for n in unknown]
        )
    return {name: method for name, method in METHODS.items() if name in names}
