"""Which engine of a bundle serves on this machine: the choice behind `edgemed.load`, and its reasons. No torch.

Why its own module: a user who gets an answer has to know which engine gave it. The order is that of `runtimes.ORDER`;
whatever is passed over is named with the reason, in `Model.reason` and in the log.

    edgemed predict BUNDLE image.png --runtime auto
"""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from typing import Any

from edgemed.bundle import Bundle
from edgemed.errors import InputError, did_you_mean
from edgemed.manifest import MODEL_FILES
from edgemed.preflight import Here, check_plan
from edgemed.records import Place, PlanRecord
from edgemed.runtimes import ORDER, PlanModule, Session, runtime_module

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """A session that is ready to run, why it was chosen, and the record of its plan (None: the ONNX file runs)."""

    session: Session
    reason: str
    record: PlanRecord | None


def place_of(session: Session, precision: str) -> Place:
    """Where a session runs, as a certificate states it."""
    values: dict[str, Any] = {
        "runtime": session.name,
        "version": session.version,
        "precision": precision,
        "device": session.device,
        "capability": session.capability,
        "os": platform.system(),
        "architecture": platform.machine(),
    }
    return Place.model_validate(values)


def is_certified(bundle: Bundle, session: Session, precision: str, record: PlanRecord | None) -> bool:
    """Whether a certificate of this engine in this very place counts. record: the plan's; None: the ONNX file runs.

    A record that cannot be read certifies nothing, and the log says so: it must not keep an engine from answering.
    """
    here, manifest = place_of(session, precision), bundle.manifest
    try:
        records = bundle.plans() if record is None else (record,)
    except InputError as error:
        _log.warning("%s", error)
        return False
    onnx = manifest.files[MODEL_FILES[precision]].sha256
    mine = [one for one in records if one.onnx_sha256 == onnx and (record or one.sha256 is None)]
    return any(one.certified_at(here, manifest.bundle_id) and bundle.trusts(one) for one in mine)


def open_engine(
    bundle: Bundle,
    *,
    runtime: str,
    precision: str,
    threads: int | None,
    uncertified: bool,
    plan: str | None,
    cuda_graph: bool,
) -> Engine:
    """The first engine of the bundle that works here, or that of the named runtime or plan. See `infer.load`.

    Raises InputError where none works, with every reason.
    """
    for name in sorted(set(bundle.manifest.files) - set(MODEL_FILES.values())):
        bundle.read(name)  # small files; a bundle with one that was changed is not the one that was proven
    onnx = bundle.read_model(precision)
    key = bundle.manifest.files[MODEL_FILES[precision]].sha256
    if plan is not None:
        runtime = _runtime_of(bundle, plan, runtime, precision)
    named = runtime != "auto"
    passed_over: list[str] = []
    for name in (runtime,) if named else ORDER:
        module = runtime_module(name)
        why_not = module.availability()
        if why_not is None:
            try:
                if isinstance(module, PlanModule):
                    allowed = named or uncertified
                    session, record = _open_plan(bundle, module, precision, plan, allowed, cuda_graph)
                else:
                    session = module.open_session(onnx, threads=threads, cache_key=key)
                    record = None
            except InputError as error:
                if named:
                    raise
                _log.warning("%s is passed over: %s", name, error)
                why_not = str(error)
            else:
                why = "asked for by name" if named else "the first that works here"
                why = why if plan is None else f"plan {plan} was asked for"
                reason = f"{name}: {why}" + (f" ({'; '.join(passed_over)})" if passed_over else "")
                _log.info("runtime %s", reason)
                return Engine(session, reason, record)
        passed_over.append(f"{name}: {why_not}")
    raise InputError(f"no runtime for {bundle.path}: {'; '.join(passed_over)}")


def _runtime_of(bundle: Bundle, plan: str, runtime: str, precision: str) -> str:
    """The runtime of the plan with an id. InputError: no such plan, or not of the runtime and precision asked for."""
    records = {one.id: one for one in bundle.plans() if one.sha256 is not None}
    if plan not in records:
        step = did_you_mean(plan, records) if records else " It has none: `edgemed build-engine BUNDLE` adds some."
        raise InputError(f"{bundle.path} holds no plan '{plan}'.{step}")
    record = records[plan]
    if runtime not in ("auto", record.runtime):
        raise InputError(f"plan {plan} is for {record.runtime}, not {runtime}; leave out --runtime")
    if record.precision != precision:
        raise InputError(f"plan {plan} is {record.precision}; add --precision {record.precision}")
    return record.runtime


def _open_plan(
    bundle: Bundle, module: PlanModule, precision: str, plan: str | None, allowed: bool, cuda_graph: bool
) -> tuple[Session, PlanRecord]:
    """The best plan for this GPU, or that of the id. `allowed`: one not certified here may run, which is logged.

    Raises InputError: no plan of this runtime and precision, none that can run here, or only uncertified ones.
    """
    here, (fitting, reasons) = module.here(), _fitting_plans(bundle, module, precision, plan)
    for reason in reasons:
        _log.warning("%s", reason)
    for record, content in fitting:
        if record.state == "certified" and record.certificate is not None:
            session = module.open_plan(content, record, cuda_graph=cuda_graph)
            if record.certified_at(place_of(session, precision), bundle.manifest.bundle_id):
                return session, record
    record, content = fitting[0]
    if not allowed:
        raise InputError(
            f"plan {record.id} is not certified on this machine; run `edgemed certify {bundle.path} DATA --runtime "
            f"{here.runtime} --precision {precision}`, or ask for this runtime by name"
        )
    _log.warning("plan %s is not certified on this machine, and runs because it was asked for", record.id)
    return module.open_plan(content, record, cuda_graph=cuda_graph), record


def no_plan(bundle: Bundle, module: PlanModule, precision: str) -> str | None:
    """Why the bundle has no plan of this precision that this machine may open; None where it has one."""
    try:
        _fitting_plans(bundle, module, precision, None)
    except InputError as error:
        return str(error)
    return None


def _fitting_plans(
    bundle: Bundle, module: PlanModule, precision: str, plan: str | None
) -> tuple[list[tuple[PlanRecord, bytes]], list[str]]:
    """The plans that this machine may open, the best first, with their bytes, and why it may not open the others.

    plan: the id of the only one that is asked for. Raises InputError: no plan of this runtime and precision, or none
    for this machine.
    """
    here = module.here()
    build = f"build one with `edgemed build-engine {bundle.path} --runtime {here.runtime}`"
    records = [one for one in bundle.plans() if one.runtime == here.runtime and one.sha256 is not None]
    records = [one for one in records if one.precision == precision and plan in (None, one.id)]
    if not records:
        raise InputError(f"{bundle.path} holds no {precision} plan for {here.runtime}; {build}")
    fitting, reasons = [], []
    for record in sorted(records, key=lambda one: (one.version == here.version, one.created), reverse=True):
        try:
            fitting.append((record, _checked(bundle, record, here)))
        except InputError as error:
            reasons.append(str(error))
    if not fitting:
        raise InputError("; ".join(reasons))
    return fitting, reasons


def _checked(bundle: Bundle, record: PlanRecord, here: Here) -> bytes:
    """The plan's bytes, verified and fit for this machine."""
    plan = bundle.read_plan(record)
    check_plan(record, plan, here)
    return plan
