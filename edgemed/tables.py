"""What commands tell people of results: metrics, operating point, ablation, predictions, certificate, bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from edgemed.display import document, fits, say, show
from edgemed.errors import flag, shown

if TYPE_CHECKING:
    from edgemed.bundle import Bundle
    from edgemed.certify import Finding
    from edgemed.infer import Model, Prediction


def metrics(result: dict[str, Any], as_json: bool, title: str) -> None:
    """Each member and the ensemble, and each class by the ensemble, with 95 % intervals."""
    if as_json:
        document(result)
        return
    table = Table(title=escape(title), title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.caption = f"{result['n']} images in {result['groups']} groups; 95 % intervals, from ten groups on"
    mean, high = (f"{result['ensemble']['ece_by_chance'][key]:.3f}" for key in ("mean", "high"))
    table.caption += f"\nby chance, even exact probabilities would show an ECE of {mean}, up to {high}"
    table.add_column("")
    for name in ("accuracy", "bal. accuracy", "macro F1", "AUROC", "ECE"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, each in (*result["members"].items(), ("ensemble", result["ensemble"])):
        cells = [_interval(each[key]) for key in ("accuracy", "balanced_accuracy", "macro_f1", "auroc")]
        table.add_row(escape(name), *cells, f"{each['ece']:.3f}", style="bold" if name == "ensemble" else "")
    show(table)
    show(_by_class(result["ensemble"], result["classes"]))
    if difference := result.get("ensemble_minus_better"):
        head = f"ensemble minus the better member ({difference['better']}): accuracy {difference['value']:+.3f}"
        say(f"{head} {_bounds(difference, '+')}")
    for pair in result["comparisons"]:
        test, accuracy, auroc = (pair[key] for key in ("mcnemar", "accuracy", "auroc"))
        say(
            f"  {pair['a']} minus {pair['b']}: accuracy {accuracy['value']:+.3f} {_bounds(accuracy, '+')}, AUROC "
            + ("undefined" if auroc["value"] is None else f"{auroc['value']:+.3f} {_bounds(auroc, '+')}")
            + f"; right on {test['only_a']} images where the other is wrong, wrong on {test['only_b']}: McNemar's p "
            f"{test['p']:.2g}" + (", which takes images for independent" if result["groups"] < result["n"] else "")
        )
    if folds := result.get("folds"):
        accuracy = folds["ensemble"]["accuracy"]
        by_fold = ", ".join(f"{value:.3f}" for value in accuracy["folds"])
        say(f"ensemble accuracy by fold: {by_fold}; mean {accuracy['mean']:.3f}, sd {accuracy['std']:.3f}")


def _by_class(ensemble: dict[str, Any], classes: Sequence[str]) -> Table:
    """What is told of a class against the rest, for the most probable class."""
    from edgemed.by_class import BY_CLASS, figure_of_class  # here, since it costs the help a tenth of a second

    table = Table(box=SIMPLE_HEAD)
    table.add_column("ensemble")
    for name in ("sensitivity", "specificity", "AUROC"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in classes:
        table.add_row(escape(name), *(_interval(figure_of_class(ensemble, key, name)) for key in BY_CLASS))
    return table


def ablation(found: dict[str, Any], as_json: bool, title: str) -> None:
    """Members and ensembles with their differences from the method's own, what was not run, and the sentence."""
    if as_json:
        document(found)
        return
    for kind in ("members", "ensembles"):
        reference = next((row["minus"]["b"] for row in found[kind] if row["minus"]), "")
        table = Table(title=escape(f"{title}: {kind}"), title_justify="left", box=SIMPLE_HEAD, caption_justify="left")
        table.caption = f"{found['n']} images in {found['groups']} groups; 95 % intervals over groups; ': another seed"
        table.add_column("")
        for name in ("accuracy", "AUROC", *((f"accuracy minus\n{reference}", "AUROC minus") if reference else ())):
            table.add_column(escape(name), justify="right", no_wrap=True)
        for row in found[kind]:
            cells = [_interval(row[key]) for key in ("accuracy", "auroc")]
            if minus := row["minus"]:
                cells += [_interval(minus[key], "+") for key in ("accuracy", "auroc")]
            table.add_row(escape(row["name"]), *cells)
        show(table)
    if found["not_run"]:
        say(f"not run: {', '.join(found['not_run'])}")
    say(found["sentence"])


def _interval(value: Mapping[str, float | None], sign: str = "") -> str:
    if value["value"] is None:
        return "undefined"
    if value["low"] is None:
        return f"{value['value']:{sign}.3f}\nno interval"
    to = " to " if sign else "-"
    return f"{value['value']:{sign}.3f}\n{value['low']:{sign}.3f}{to}{value['high']:{sign}.3f}"


def _bounds(value: dict[str, float | None], sign: str = "") -> str:
    return "(no interval)" if value["low"] is None else f"[{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def predictions(found: Sequence[Prediction], model: Model) -> None:
    """One row per image: label, decision and prediction set where there is an operating point, probabilities.

    Where the terminal is too narrow for the row, lines: a figure that is cut off would look like another one.
    """
    if not found:
        return
    table = Table(title=escape(f"{model.bundle.path.name} on {model.runtime}, {model.precision}"), title_justify="left")
    table.add_column("image", overflow="fold", max_width=40)
    table.add_column("label", no_wrap=True)
    point = model.bundle.manifest.operating_point
    if point:
        table.add_column("decision", no_wrap=True)
    if point and point.coverage:
        table.add_column(f"{point.coverage:g} set", overflow="fold")
    for name in model.labels:
        table.add_column(escape(name), justify="right", no_wrap=True)
    for item in found:
        shares = (f"{item.probabilities[name]:.3f}" for name in model.labels)
        decision = [escape(item.decision)] if point else []
        if item.prediction_set is not None:
            decision.append(escape(", ".join(item.prediction_set) or "none"))
        table.add_row(escape(shown(str(item.path))), escape(item.label), *decision, *shares)
    if fits(table):
        show(table)
        return
    for item in found:
        say(f"{shown(str(item.path))}: {item.label}" + (f", decision {item.decision}" if point else ""))
        if item.prediction_set is not None:
            say(f"  set: {', '.join(item.prediction_set) or 'none'}")
        say("  " + ", ".join(f"{name} {item.probabilities[name]:.3f}" for name in model.labels))


def certificate(found: Finding) -> None:
    """What a certification compared, and where."""
    from edgemed.gates import changes  # here, since it costs the help a tenth of a second

    statement = found.record.certificate
    assert statement is not None  # it was just made
    place, change = statement.place, statement.auroc_change
    table = Table(
        title=escape(f"certified: {found.record.id}"), title_justify="left", show_header=False, box=SIMPLE_HEAD
    )
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_row("place", escape(f"{place.runtime} {place.version}, {place.device} ({place.capability})"))
    known = f"{statement.images} of the reference's {found.reference_images}"
    unfit = f", {found.unfit} of a size that the engine does not take" if found.unfit else ""
    table.add_row("images", f"{known}; {found.unmatched} of {found.files} files are unknown to it or copies{unfit}")
    table.add_row("probability error", f"largest {statement.max_prob_error:.1e}, mean {statement.mean_prob_error:.1e}")
    flips = changes(", ".join(map(str, found.flips)) or "none", statement.unclear, place.precision)
    table.add_row("changed answers", escape(flips))
    if change is None:
        text = "not judged: images of one class"
    elif change.low is None or change.high is None:
        text = f"{change.value:+.5f} (no interval)"
    else:
        text = f"{change.value:+.5f} [{change.low:+.5f}, {change.high:+.5f}]"
    table.add_row("change of AUROC", text)
    show(table)


def inspection(bundle: Bundle, tests: Sequence[dict[str, Any]] | None, as_json: bool) -> None:
    """The manifest's facts, the files, the state of every plan, and, where they were run, the self-tests."""
    from edgemed.operating import in_words  # here, since it costs the help a tenth of a second

    manifest = bundle.manifest
    plans = [plan.model_dump(mode="json") for plan in bundle.plans()]
    if as_json:
        document({"manifest": manifest.model_dump(mode="json"), "plans": plans, "self_tests": tests})
        return
    table = Table(title=escape(str(bundle.path)), title_justify="left", show_header=False, box=SIMPLE_HEAD)
    table.caption, table.caption_justify = "every sha256 verified", "left"
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_row("bundle", manifest.bundle_id)
    table.add_row("backbone", manifest.backbone)
    table.add_row("labels", escape(", ".join(manifest.labels)))
    table.add_row("decision", escape(in_words(manifest.operating_point)))
    table.add_row("members", ", ".join(manifest.member_names))
    table.add_row("temperatures", ", ".join(f"{value:.3f}" for value in manifest.temperatures))
    cost = f"{manifest.flops / 1e9:.2f} GFLOP, {manifest.weight_bytes / 1e6:.1f} MB of weights"
    table.add_row("model size", f"{manifest.size} px, {cost}")
    table.add_row("image sides", f"{manifest.input.min_side} to {manifest.input.max_side} px, uint8 RGB")
    if manifest.entropy:
        table.add_row("entropy", f"{manifest.entropy_side} x {manifest.entropy_side} patches of 32 px, in bits")
    for name, entry in sorted(manifest.files.items()):
        table.add_row(escape(name), f"{entry.bytes:,} bytes, {entry.sha256[:12]}")
    for plan in plans:
        table.add_row(f"plans/{plan['id']}", f"{plan['runtime']} {plan['version']}: {_state(plan)}")
    for test in tests or ():
        name = f"self-test {test['runtime']} {test['precision'] or ''}".strip()
        if found := test.get("comparison"):
            text = f"right on {found['n']} golden images (largest error {found['max_prob_error']:.1e}); {test['state']}"
        else:
            text = f"FAILED: {test['failure']}" if test["failure"] else f"not run: {test['not_run']}"
        table.add_row(name, escape(text))
    show(table)


def _state(plan: dict[str, Any]) -> str:
    from edgemed.gates import default_gates

    if certified := plan["certificate"]:
        place = certified["place"]
        judged = "" if certified["gates"]["max_auroc_drop"] is not None else ", AUROC not judged"
        count = f"{certified['images']:,} image" + ("s" if certified["images"] > 1 else "")
        count += f", {len(certified['flips'])} changed" if certified["flips"] else ""
        gates = vars(default_gates(place["precision"]))
        wide = [f"{flag(key)} {value:g}" for key, value in certified["gates"].items() if (value or 0) > gates[key]]
        count += f", by {' '.join(wide)}" if wide else ""
        return escape(f"certified on {count}{judged}, {place['device']}, {certified['created'][:10]}")
    return "built, not executed" if plan["state"] == "built" else str(plan["state"])


def operating_point(metrics: dict[str, Any]) -> None:
    """What was asked of the operating point of a run, and what it attains on its test images."""
    from edgemed.operating_quality import PROMISE, attained  # here, since it costs the help a tenth of a second

    found = metrics["operating"]
    split = f" (split: {metrics['split']})" if "split" in metrics else ""
    say(f"operating point, judged on {metrics['n']} images{split}; 95 % intervals:")
    table = Table("", box=SIMPLE_HEAD)
    table.add_column("asked", justify="right")
    table.add_column("attained", justify="right", no_wrap=True)
    for line in attained(found):
        table.add_row(escape(line.name), line.asked, _interval(line.found))
    show(table)
    say(PROMISE)
    if sets := found.get("sets"):
        say(f"{sets['mean_size']:.2f} labels in a prediction set")
