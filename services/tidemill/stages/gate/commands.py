"""Commands and alerts: the standing and a request give a decision, or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tidemill.declare.training import Training
from tidemill.registry.decisions import NOBODY, Command, ModelRef
from tidemill.stages.gate.rounds import Check
from tidemill.stages.gate.standing import Draft, Standing
from tidemill.stages.gate.trial import Trial

#: Takes a model's name; returns the highest epoch of its manifests, 0 where it has none.
EpochOf = Callable[[str], int]


def carry_out(
    standing: Standing,
    command: Command,
    offset: int,
    trials: Mapping[ModelRef, Trial],
    check: Check,
    epoch_of: EpochOf = lambda _: 0,
) -> Draft:
    """Return the decision that a command leads to; `offset` is the next example's.

    `trials` are the challengers', as evidence for a decision about one of them. `check` says why a model or a
    version can't serve, `epoch_of` in which life a model is by its manifests.
    """
    if command.kind == RESET:
        return _reset(standing, command, epoch_of)
    action = COMMANDS.get(command.kind)
    if action is None:
        return Draft(
            "refused", f"no command {command.kind!r}: expected {', '.join((*COMMANDS, RESET))}", command.target
        )
    draft = action(standing, command, offset, check)
    if draft.kind in ("promoted", "rolled_back", "pinned"):
        return draft._replace(trial=trials.get(draft.subject))
    return draft


def _place(
    standing: Standing, command: Command, ref: ModelRef, kind: str, check: Check, *, pinned: bool = False
) -> Draft:
    if (ref, pinned) == (standing.champion, standing.pinned):
        return Draft("unchanged", f"{ref} serves already", ref)
    why_not = check(ref)
    if why_not:
        return Draft("refused", f"{ref} can't serve: {why_not}", command.target)
    is_new = kind == "promoted" and ref != standing.champion
    against = standing.champion if is_new else NOBODY
    return Draft(kind, command.why, ref, {"champion": ref, "on_probation_against": against, "pinned": pinned})


def _promote(standing: Standing, command: Command, _offset: int, check: Check) -> Draft:
    return _place(standing, command, command.target, "promoted", check)


def _roll_back(standing: Standing, command: Command, _offset: int, check: Check) -> Draft:
    """Bring back the champion of so many changes ago; one that served twice counts once."""
    champions, steps = standing.earlier_champions, max(1, command.steps)
    if steps < len(champions):
        return _place(standing, command, champions[steps], "rolled_back", check)
    earlier = ", ".join(map(str, champions[1:])) or "none"
    why = f"there is no champion {steps} back: earlier ones, the latest first: {earlier}"
    return Draft("refused", why, command.target)


def _pin(standing: Standing, command: Command, _offset: int, check: Check) -> Draft:
    ref = command.target
    if ref.version:
        return _place(standing, command, ref, "pinned", check, pinned=True)
    why = f"a pin is of a version, and {ref or 'nobody'} is none: name one, as {ref.model or 'logreg'}@12000"
    return Draft("refused", why, ref)


def _unpin(standing: Standing, command: Command, _offset: int, _check: Check) -> Draft:
    """Let the gate decide again; the model of the pinned version serves as it has learned by now."""
    if not standing.pinned:
        return Draft("unchanged", "nothing is pinned", standing.champion)
    ref = ModelRef(standing.champion.model)
    changes = {"champion": ref, "on_probation_against": NOBODY, "pinned": False}
    return Draft("unpinned", command.why, ref, changes)


def _train(standing: Standing, command: Command, offset: int, _check: Check, *, is_corrected: bool = False) -> Draft:
    model, begin, declared = command.target.model, command.begin, standing.pipeline.models
    if model not in declared:
        why = f"the pipeline declares no model {model!r}: there are {', '.join(declared)}"
        return Draft("refused", why, command.target)
    begin = max(0, offset + begin) if begin < 0 else begin
    if begin >= offset:
        why = f"there is nothing to learn from example {begin:,} on: there are {offset:,}"
        return Draft("refused", why, command.target)
    if is_corrected and not standing.pipeline.corrections_ms:
        why = 'the pipeline declares no corrections of labels: labels=Stream(..., corrections="30d")'
        return Draft("refused", why, command.target)
    name = f"{model}~{begin}~{offset}" if is_corrected else f"{model}~{begin}"
    if name == standing.candidate:
        return Draft("unchanged", f"{name} is the candidate already", ModelRef(name))
    return Draft("training", command.why, ModelRef(name), {"candidate": name})


#: The command that begins another life of a model.
RESET = "reset"


def _reset(standing: Standing, command: Command, epoch_of: EpochOf) -> Draft:
    """Begin another life of a model; where one of its versions is pinned or on probation, the model itself serves."""
    model, declared = command.target.model, standing.pipeline.model_names
    if model not in declared or command.target.version:
        why = f"{command.target or 'nobody'} can't be reset: name a declared model, one of {', '.join(declared)}"
        return Draft("refused", why, command.target)
    epoch = max(standing.epochs.get(model, 0), epoch_of(model)) + 1
    changes: dict[str, Any] = {"epochs": {**standing.epochs, model: epoch}}
    if standing.champion.model == model:
        changes |= {"champion": ModelRef(model), "pinned": False}
    if standing.on_probation_against.model == model:
        changes |= {"on_probation_against": NOBODY}
    return Draft("reset", command.why, ModelRef(model), changes)


#: Actions by the kind of command.
COMMANDS: Mapping[str, Callable[[Standing, Command, int, Check], Draft]] = {
    "promote": _promote,
    "rollback": _roll_back,
    "pin": _pin,
    "unpin": _unpin,
    "train": _train,
    "train_corrected": partial(_train, is_corrected=True),
}


def alert_id(alert: Mapping[str, Any]) -> str:
    """Return the id of the decision that an alert leads to: one each time that it opens."""
    return f"{alert['id']} {alert['opened_at']}"


def train_on_alert(standing: Standing, training: Training, alert: Mapping[str, Any], offset: int) -> Draft | None:
    """Return the decision to train a candidate where the pipeline declares it for this kind of alert."""
    if alert["state"] != "opened" or alert["kind"] not in training.on or not offset:
        return None
    if _is_paused(standing, training, offset) or any(one.id == alert_id(alert) for one in standing.decisions):
        return None
    begin = max(0, offset - training.examples) if training.examples else 0
    name = f"{training.model}~{begin}"
    why = f"alert {alert['id']}: {alert['message']}; a candidate learns from example {begin:,} on"
    return Draft("training", why, ModelRef(name), {"candidate": name})


def _is_paused(standing: Standing, training: Training, offset: int) -> bool:
    started = (one.examples for one in standing.decisions if one.kind == "training")
    return offset < max(started, default=-training.pause) + training.pause


def train_on_corrections(
    standing: Standing, training: Training, corrections: int, examples: int, offset: int
) -> Draft | None:
    """Return the decision to train a candidate on corrected labels where enough of all examples were corrected.

    `corrections`: those since the last such decision; `offset`: of the record after the last of them.
    """
    if not training.corrected or corrections <= training.corrected * examples:
        return None
    if _is_paused(standing, training, offset):
        return None
    name = f"{training.model}~0~{offset}"
    why = f"{corrections:,} labels of {examples:,} examples were corrected; a candidate learns all examples, corrected"
    return Draft("training", why, ModelRef(name), {"candidate": name})
