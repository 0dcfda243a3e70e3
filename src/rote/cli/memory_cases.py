"""`rote memory cases simulate | fit | predict | explain | scan | audit`: this EEG looks like these EEGs.

Thin: parses, calls `rote.memory.cases` and `rote.records`, prints. Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from rote.cli.console import out as console
from rote.cli.console import print_json, progress_bars
from rote.errors import InputError

cases_app = typer.Typer(
    help="Detect events in EEG by remembered cases: every prediction is the vote on the most similar segments.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Base = Annotated[Path, typer.Argument(help="A case base that `rote memory cases fit` wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")]
Resample = Annotated[bool, typer.Option(help="Resample recordings at another rate instead of refusing them.")]
Patient = Annotated[str | None, typer.Option(help="Whose recording it is: that patient's cases are no neighbours.")]


@cases_app.command("simulate")
def simulate(
    output: Annotated[Path, typer.Option("-o", "--out", help="Segments (.npz), or a recording (.edf) with --seconds.")],
    n: Annotated[int, typer.Option("-n", "--n", help="Segments of 1.5 s at 128 Hz, ten a patient.")] = 1000,
    patients: Annotated[int | None, typer.Option(help="Patients. [default: n / 10]")] = None,
    seconds: Annotated[float | None, typer.Option(help="Make one continuous recording of this length instead.")] = None,
    per_minute: Annotated[float, typer.Option(help="Discharges a minute in the recording.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Simulate EEG with and without epileptiform discharges, and the votes of eight raters: to try things out."""
    from rote.records.eeg_recordings import write_edf
    from rote.records.simulated_eeg import simulate_eeg, simulate_recording

    if seconds is not None:
        made = simulate_recording(seconds, per_minute=per_minute, seed=seed)
        events = [(float(onset), "IED") for onset in made.onsets]
        path = write_edf(output, made.data, made.names, made.sfreq, events=events)
        result: dict[str, Any] = {
            "path": str(path), "seconds": seconds, "discharges": len(made.onsets), "focus": made.patient.focus,
            "onsets": [round(float(onset), 3) for onset in made.onsets],
        }  # fmt: skip
    else:
        segments = simulate_eeg(n, patients=patients, seed=seed)
        path = segments.save(output)
        result = {
            "path": str(path), "segments": len(segments), "patients": len(set(segments.groups.tolist())),
            "with_discharge": int((segments.kind == "ied").sum()),
            "votes": [int((segments.votes == vote).sum()) for vote in range(segments.raters + 1)],
        }  # fmt: skip
    _show(result, json_=json_, quiet=quiet)


@cases_app.command(
    "fit", epilog="Example: rote memory cases fit --recordings edf/ --events events.tsv --groups patient -o base"
)
def fit(
    output: Annotated[Path, typer.Option("-o", "--out", help="Directory for the case base.")],
    segments: Annotated[
        Path | None, typer.Option(help="A .npz with data (uV), votes, groups, names, sfreq, ids, raters.")
    ] = None,
    recordings: Annotated[Path | None, typer.Option(help="Folder of EDF, BDF, FIF, ... recordings.")] = None,
    events: Annotated[Path | None, typer.Option(help="Table (TSV, CSV): file, onset (s), votes, patient.")] = None,
    groups: Annotated[str, typer.Option(help="Column of --events that names the patient.")] = "patient",
    raters: Annotated[int, typer.Option(help="How many voted in --events; 1 for yes or no.")] = 8,
    montage: Annotated[str, typer.Option(help="10-20, or average (any electrodes).")] = "10-20",
    k: Annotated[int, typer.Option("-k", "--k", help="Neighbours a prediction averages.")] = 10,
    weights: Annotated[
        str, typer.Option(help="Channel weights: leave-one-in, leave-one-in-place, leave-one-out, equal.")
    ] = "leave-one-in",
    width: Annotated[float, typer.Option(help="Width of the network (1 is the paper's).")] = 0.5,
    epochs: Annotated[int, typer.Option(help="Epochs of the detector.")] = 8,
    prototype_phase: Annotated[bool, typer.Option(help="Train the trunk with prototypes.")] = True,
    calibrate: Annotated[bool, typer.Option(help="Calibrate on held-out patients.")] = True,
    resample: Resample = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "cpu",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on labelled segments, remember them as cases, calibrate on held-out patients.

    The same command continues an interrupted run behind the last part that was finished.
    """
    from rote.memory.cases import ProtoKNN, SignalSettings, TrainingSettings, save_case_base
    from rote.memory.cases.model_files import check_directory
    from rote.records.eeg_recordings import read_segments, segments_from_events

    check_directory(output)
    signal = SignalSettings()
    if segments is not None and (recordings or events):
        raise InputError("give either --segments, or --recordings with --events")
    if segments is not None:
        labelled = read_segments(segments)
    elif recordings is not None and events is not None:
        labelled = segments_from_events(
            recordings, events, samples=signal.crop + signal.crop // 2, sfreq=signal.sfreq, group=groups, raters=raters,
            resample=resample,
        )  # fmt: skip
    else:
        raise InputError("give the segments: --segments FILE.npz, or --recordings DIR with --events TABLE")
    estimator = ProtoKNN(
        montage=montage, k=k, weights=weights, signal=signal, prototype_phase=prototype_phase, calibrate=calibrate,
        training=TrainingSettings.small(width=width, detector_epochs=epochs), random_state=seed, device=device,
    )  # fmt: skip
    unfinished = output.parent / f".{output.name}.unfinished"
    with progress_bars(quiet=quiet or json_, unit="batches") as progress:
        estimator.fit(
            labelled.data, labelled.votes, groups=labelled.groups, raters=labelled.raters, ids=labelled.ids,
            ch_names=labelled.names, sfreq=labelled.sfreq, resume=unfinished, progress=progress,
        )  # fmt: skip
    path = save_case_base(estimator, output)
    shutil.rmtree(unfinished, ignore_errors=True)
    base = estimator.cases_
    _show(
        {
            "path": str(path), "cases": len(base), "patients": len(set(base.groups.tolist())),
            "positive": int(base.positive.sum()), "calibration_patients": len(estimator.validation_groups_),
            "fingerprint": estimator.model_.fingerprint,
        },
        json_=json_, quiet=quiet,
    )  # fmt: skip


@cases_app.command("predict")
def predict(
    base: Base,
    segments: Annotated[Path, typer.Argument(help="Segments (.npz); votes and patients in it are used to evaluate.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write a table of predictions (.tsv) here.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of patients.")] = 2000,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict segments; patients that are in the case base are refused, because a figure on them would be inflated."""
    from rote.memory.cases import evaluate_votes, load_case_base
    from rote.memory.cases.splits import check_groups, check_patient_disjoint, check_votes
    from rote.records.eeg_recordings import read_segments

    estimator, given = load_case_base(base), read_segments(segments)
    names = check_groups(given.groups, len(given.data), where=str(segments))
    known = [*estimator.cases_.groups.tolist(), *estimator.validation_groups_.tolist()]
    check_patient_disjoint(known, names, where=str(segments))
    encoded = estimator.encode(given.data, ch_names=given.names, sfreq=given.sfreq)
    vote = estimator.predict_vote(given.data, ch_names=given.names, sfreq=given.sfreq)
    chance, black_box = estimator.calibrated(vote), estimator.model_.black_box(encoded.channels)
    truth = check_votes(given.votes, len(vote), given.raters, where=str(segments)) / given.raters
    both = evaluate_votes(vote, truth, names, resamples=resamples).to_dict()
    if output is not None:
        from rote.atomic import write_atomic

        lines = ["id\tpatient\tvotes\tvote\tprobability\tblack_box"]
        lines += [
            f"{one}\t{who}\t{true * given.raters:.0f}\t{v:.4f}\t{p:.4f}\t{b:.4f}"
            for one, who, true, v, p, b in zip(given.ids, names, truth, vote, chance, black_box, strict=True)
        ]
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, "\n".join(lines) + "\n")
    result = {
        "segments": len(vote), "patients": len(set(names.tolist())), "cases": both,
        "black_box": evaluate_votes(black_box, truth, names, resamples=resamples).to_dict(),
        "table": None if output is None else str(output),
    }  # fmt: skip
    if json_:
        print_json(result)
    elif not quiet:
        for which, title in (("cases", "case-based"), ("black_box", "detector alone")):
            cells = [
                f"{name} {found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
                for name, found in result[which].items() if found["low"] is not None
            ]  # fmt: skip
            console.print(f"{title:15} {', '.join(cells)}", markup=False, soft_wrap=True)
        console.print(
            f"n = {len(vote)} segments of {result['patients']} new patients; 95 % over patients", markup=False
        )


@cases_app.command("explain")
def explain(
    base: Base,
    source: Annotated[Path, typer.Argument(help="A recording (with --at), or segments (.npz, with --id).")],
    at: Annotated[float | None, typer.Option(help="Time in the recording, s: centre of the segment.")] = None,
    id_: Annotated[str | None, typer.Option("--id", help="Id of the segment in the .npz.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the explanation figure here.")] = None,
    patient: Patient = None,
    resample: Resample = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Explain one prediction: the nearest cases, the channels and statistics that match, as a figure and as numbers."""
    from rote.memory.cases import load_case_base
    from rote.records.eeg_recordings import read_recording, read_segments

    estimator = load_case_base(base)
    signal = estimator.model_.signal
    if source.suffix.lower() == ".npz":
        given = read_segments(source)
        if id_ is None or id_ not in given.ids.tolist():
            raise InputError(f"{source}: give the --id of one of its {len(given.ids)} segments, like {given.ids[0]}")
        row = given.ids.tolist().index(id_)
        data, names, sfreq, name = given.data[row], given.names, given.sfreq, id_
        patient = patient or str(given.groups[row])
    else:
        if at is None:
            raise InputError(f"{source}: give the time of the segment in the recording, --at SECONDS")
        recording = read_recording(source, sfreq=signal.sfreq, resample=resample)
        data, names, sfreq = recording.segment(at, signal.crop), recording.names, recording.sfreq
        name = f"{source.stem} at {at:g} s"
    found = estimator.explain(data, group=patient, id=name, ch_names=names, sfreq=sfreq)
    if png is not None:
        found.plot(png)
    if json_:
        print_json(found.to_dict() | {"figure": None if png is None else str(png)})
    elif not quiet:
        console.print(
            f"{name}: probability {found.probability:.2f} (mean vote of {len(found.neighbours)} cases {found.vote:.2f},"
            f" detector alone {found.black_box:.2f}); most weight on {', '.join(found.top_channels())}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        for one in found.neighbours:
            parts = ", ".join(f"{part} {share:.2f}" for part, share in one.per_statistic.items())
            console.print(
                f"  {one.id}: {one.votes}/{one.raters} votes, S = {one.similarity:.3f} ({parts})", markup=False,
                soft_wrap=True,
            )  # fmt: skip
        if png is not None:
            console.print(f"figure: {png}", markup=False, soft_wrap=True)


@cases_app.command("scan")
def scan_command(
    base: Base,
    recording: Annotated[Path, typer.Argument(help="EDF, BDF, FIF, BrainVision or EEGLAB recording.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the events (.tsv, BIDS-style) here.")
    ] = None,
    stride: Annotated[float, typer.Option(help="Seconds between windows.")] = 0.125,
    threshold: Annotated[float, typer.Option(help="Calibrated probability from which a window is a hit.")] = 0.5,
    quiet_recording: Annotated[
        list[Path] | None, typer.Option(help="A recording without events: take the threshold from it.")
    ] = None,
    false_per_minute: Annotated[float, typer.Option(help="False events a minute allowed in quiet recordings.")] = 1.0,
    refractory: Annotated[float, typer.Option(help="Hits at most this many seconds apart are one event.")] = 0.5,
    patient: Patient = None,
    resample: Resample = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find events in a continuous recording: onset, duration, probability, region, neighbours."""
    from rote.memory.cases import Scan, load_case_base, quiet_threshold, scan_recording
    from rote.records.eeg_recordings import read_recording

    estimator = load_case_base(base)
    with progress_bars(quiet=quiet or json_, unit="windows") as progress:

        def scan(path: Path, threshold: float, group: str | None) -> Scan:
            read = read_recording(path, sfreq=estimator.model_.signal.sfreq, resample=resample)
            return scan_recording(
                estimator, read.data, read.names, read.sfreq, stride=stride, threshold=threshold,
                refractory=refractory, group=group, progress=lambda done, total: progress(path.name, done, total),
            )  # fmt: skip

        if quiet_recording:
            calm = [scan(path, threshold, None) for path in quiet_recording]
            threshold = quiet_threshold(calm, per_minute=false_per_minute)
        found = scan(recording, threshold, patient)
    if output is not None:
        found.save_tsv(output)
    events = [vars(event) | {"neighbours": list(event.neighbours)} for event in found.events]
    if json_:
        print_json({
            "seconds": found.seconds, "windows": len(found.times), "threshold": threshold, "events": events,
            "per_minute": found.per_minute, "table": None if output is None else str(output),
        })  # fmt: skip
    elif not quiet:
        for event in found.events:
            console.print(f"{event.onset:9.2f} s  p = {event.probability:.2f}  {event.region}", markup=False)
        console.print(
            f"{len(found.events)} events in {found.seconds:.0f} s ({found.per_minute:.2f} a minute) at probability >="
            f" {threshold:.3g}", markup=False, soft_wrap=True,
        )  # fmt: skip
        if not quiet_recording:
            console.print(
                "how many are false was not measured: give --quiet-recording, one without events, to set the threshold",
                markup=False, soft_wrap=True,
            )  # fmt: skip


@cases_app.command("audit")
def audit_command(
    base: Base,
    top: Annotated[int, typer.Option(help="Label conflicts to list.")] = 20,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of patients.")] = 2000,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Audit the memory: leave-one-patient-out figures, labels that their neighbours contradict, duplicate cases."""
    from rote.memory.cases import audit_cases, load_case_base

    found = audit_cases(load_case_base(base), top=top, resamples=resamples)
    if json_:
        print_json(found.to_dict())
        return
    if quiet:
        return
    auroc, r2 = found.evaluation.auroc, found.evaluation.r2
    console.print(
        f"{found.cases} cases of {found.patients} patients; leave-one-patient-out AUROC {auroc.value:.3f}"
        f" ({auroc.low:.3f} to {auroc.high:.3f}), R2 {r2.value:.3f} ({r2.low:.3f} to {r2.high:.3f}); the networks saw"
        " these patients", markup=False, soft_wrap=True,
    )  # fmt: skip
    for one in found.conflicts:
        console.print(f"  {one.id} ({one.group}): votes {one.fraction:.2f}, neighbours say {one.loo:.2f}", markup=False)
    leaks = sum(one.across for one in found.duplicates)
    console.print(f"{len(found.duplicates)} duplicate pairs, {leaks} of them across patients", markup=False)
    for one in found.duplicates[:top]:
        kind = "identical" if one.identical else f"S >= {one.similarity:.4f}"
        console.print(f"  {one.first} = {one.second} ({kind})", markup=False)


def _show(result: dict[str, Any], *, json_: bool, quiet: bool) -> None:
    if json_:
        print_json(result)
    elif not quiet:
        for key, value in result.items():
            console.print(f"{key + ':':22} {value}", markup=False, soft_wrap=True)
