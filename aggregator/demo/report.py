"""The demo's report: one HTML file that needs no other, readable in light and in dark."""

from __future__ import annotations

import html
import string
from pathlib import Path
from typing import Final

from aggregator.demo import plots
from aggregator.demo.outcome import Outcome, wire_bytes
from aggregator.demo.play import Picture
from aggregator.status import privacy_line

TEMPLATE: Final = Path(__file__).with_name("report.html")


def write(path: Path, outcome: Outcome) -> None:
    """Fill the template in."""
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    held = all(good for _, good in outcome.checks())
    filled = template.substitute(
        headline="All of it held." if held else "Something did not hold: see the list of checks.",
        count=outcome.devices,
        figures=_figures(outcome),
        checks="".join(_check(sentence, good) for sentence, good in outcome.checks()),
        question=html.escape(outcome.play.question),
        application=html.escape(outcome.play.name),
        data_source=html.escape(outcome.play.source),
        records=html.escape(outcome.play.records),
        shares=html.escape(outcome.play.shares),
        metric_meaning=html.escape(outcome.play.words),
        pictures="".join(_picture(picture) for picture in outcome.pictures),
        promise=_promise(outcome),
        metric_plot=plots.metric_by_round(outcome),
        metric_words=_metric_words(outcome),
        devices=_devices(outcome),
        epsilon_plot=plots.epsilon_by_round(outcome),
        upload_plot=plots.upload_bytes(outcome),
        upload_words=upload_words(outcome),
        seconds_plot=plots.seconds_by_phase(outcome),
        deaths=_deaths(outcome),
        forgeries="".join(_forgery(outcome, number) for number in range(len(outcome.forgeries))),
        model=html.escape(outcome.released),
        models="".join(_model(name, sha256, outcome.released) for name, sha256 in sorted(outcome.models.items())),
        footer=f"{outcome.devices} device processes, broker {html.escape(outcome.broker)}, {outcome.seconds:.0f} s.",
    )
    path.write_text(filled, encoding="utf-8")


def _figures(outcome: Outcome) -> str:
    privacy, name = outcome.task["privacy"], plots.metric_name(outcome.task["metric_name"])
    compared = [
        (f"{outcome.local_mean:.3f}", f"{name} of a device alone, mean, no privacy"),
        (f"{outcome.local_private_mean:.3f}", f"{name} of a device alone, mean, same privacy"),
        (f"{outcome.central_private:.3f}", f"{name} of one centre, same privacy"),
        (f"{outcome.central:.3f}", f"{name} of one centre, no privacy"),
    ]
    shown = [
        (f"{outcome.fleet_metric:.3f}", f"{name} of the fleet's model"),
        *(compared if outcome.compared else ()),
        (
            f"{privacy['epsilon']:.2f}",
            f"epsilon for each {privacy['unit']}, delta {privacy['delta']:g}, {privacy['placement']} noise",
        ),
        (f"{outcome.on_new_model} of {len(outcome.models)}", "living devices on the new signed model"),
    ]
    return "".join(f"<div><b>{value}</b><span>{html.escape(what)}</span></div>" for value, what in shown)


def _check(sentence: str, good: bool) -> str:
    return f'<li class="{"good" if good else "bad"}">{html.escape(sentence)}</li>'


def _promise(outcome: Outcome) -> str:
    terms = outcome.task["privacy"]
    sentences = [privacy_line(terms), *terms["assumptions"]]
    told = " ".join(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in sentences)
    return html.escape(f"{told} {outcome.play.protected}")


def _metric_words(outcome: Outcome) -> str:
    if not outcome.compared:
        return "Nothing was trained to compare with (--no-comparison)."
    better = -1 if outcome.lower_is_better else 1

    def against(other: float) -> str:
        gain = better * (outcome.fleet_metric - other)
        return f"{abs(gain):.3f} {'better' if gain >= 0 else 'worse'} than"

    return (
        f"The fleet's model is {against(outcome.local_private_mean)} the mean device alone with the same privacy, and "
        f"{against(outcome.local_mean)} the mean device alone that adds no noise at all. It is "
        f"{against(outcome.central_private)} one centre that saw all {outcome.play.records} and added noise for the "
        f"same epsilon, and {against(outcome.central)} one that added none. {_why_behind(outcome)}"
    )


def _why_behind(outcome: Outcome) -> str:
    if outcome.task["privacy"]["placement"] == "local":
        return "Each device adds all the noise that its own promise needs: the sum has more than a centre would add."
    return (
        "A round's step is the centre's but for two things: the killed devices' rows are missing from it, and the "
        "noise has to suffice even if fewer devices than took part add theirs."
    )


def _devices(outcome: Outcome) -> str:
    if not outcome.compared:
        return ""
    records = html.escape(outcome.play.records)
    return (
        f'{plots.device_by_device(outcome)}\n<p class="soft">In brackets: how many {records} the device holds. All are '
        f"measured on the same held-out {records}, after as many steps as the fleet took.</p>"
    )


def _picture(picture: Picture) -> str:
    words = html.escape(picture.words)
    return f'<h2>{html.escape(picture.title)}</h2>\n{picture.body}\n<p class="soft">{words}</p>\n'


def upload_words(outcome: Outcome) -> str:
    """What an upload weighs, and of what."""
    last = outcome.rounds_shown[-1]
    weights, sent = last["float32_bytes"] // 4, wire_bytes(last["upload_bytes"])
    masked = weights * outcome.weight_bytes
    return (
        f"This model has {weights:,} trained weights. An upload puts {sent:,} bytes on the wire, everything counted: "
        f"masked weights of {outcome.weight_bytes} bytes each ({masked:,}), and {sent - masked:,} that hardly grow "
        f"with the model: a sealed share for each committee member, keys, tags. That is "
        f"{outcome.upload_ratio:.2f} of plain float32, and {outcome.upload_ratio_100k:.2f} for 100,000 weights."
    )


def _deaths(outcome: Outcome) -> str:
    after = outcome.after_kill
    if not after:
        return "No device was killed."
    first, second = html.escape(outcome.killed_while_training), html.escape(outcome.killed_after_upload)
    return (
        f"Round {after['round']}: <b>{first}</b> was killed (kill -9) before its upload was in, and <b>{second}</b>, a "
        f"committee member, after its upload and before it could answer the opening. The round was opened with "
        f"{after['devices_in']} updates, the second one's included."
    )


def _forgery(outcome: Outcome, number: int) -> str:
    one = outcome.forgeries[number]
    kept = "its model stayed" if one.model_unchanged else "its model changed"
    verdict = f"refused by {one.device}: {one.reason}; {kept}" if one.refused else "not refused"
    return f"<li><b>{html.escape(one.attack)}</b>: {html.escape(verdict)}.</li>"


def _model(device: str, sha256: str, released: str) -> str:
    good = "good" if sha256 == released else "bad"
    return f'<tr><td>{html.escape(device)}</td><td class="{good}"><code>{html.escape(sha256[:24])}</code></td></tr>'
