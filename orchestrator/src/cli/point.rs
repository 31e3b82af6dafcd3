//! The clones of a run that `lab shell` looks into: those that were kept of it, or fresh ones, brought to the moment before the step that
//! failed.

use patchlab_lab::{
    failure::{Blame, failures},
    kept::{Keep, Kept, KeptClones},
    report::BaselineReport,
    runs::{Point, Run, Runs, Scope},
    verdict::Judgement,
};

use super::{
    CliError, Output,
    runs::{self, Again, baseline_of},
    validate,
};
use crate::{lab::pool::Pool, place::Data};

/// The clones of a run, on the baseline of that name, or on the first that did not pass.
pub(super) fn clones(output: &Output, data: &Data, run: &Run, baseline: Option<&str>) -> Result<Kept, CliError> {
    let name = baseline_of(run, baseline)?;
    let report = run.report().map_err(runs::classify)?;
    let found = report.baselines.iter().find(|report| report.name == name);
    let found = found.ok_or_else(|| CliError::Input(format!("run {} found nothing on {name}", run.record.id)))?;
    if let Some(kept) = of_report(data, found) {
        return Ok(kept);
    }
    let point = point(run, found)?;
    if let Some(kept) = of_run_before(data, run, &name, &point) {
        return Ok(kept);
    }
    let scope = Scope::Before(point);
    output.note(format!("its clones were not kept: fresh ones are brought to the moment {}", scope.describe()));
    fresh(output, data, run, &name, scope)
}

/// The step that failed first, the patch's failures before others.
fn point(run: &Run, found: &BaselineReport) -> Result<Point, CliError> {
    let (id, name) = (&run.record.id, &found.name);
    let failures = failures(found, &run.record.scenarios);
    let first = failures.iter().find(|failure| failure.blame == Blame::Patch).or(failures.first());
    match first {
        Some(failure) if failure.tested.is_some() => {
            Ok(Point { phase: failure.phase, scenario: failure.scenario.into(), step: failure.step.into() })
        }
        Some(failure) => Err(CliError::Input(format!(
            "run {id}: what failed on {name} is no step of a scenario ({failure}): `patchlab lab retry {id} --keep always` keeps clones of it"
        ))),
        None => Err(CliError::Input(format!(
            "run {id}: no step failed on {name}: `patchlab lab retry {id} --keep always` keeps clones of it"
        ))),
    }
}

/// What was kept of a validation, when it is still there.
fn of_report(data: &Data, report: &BaselineReport) -> Option<Kept> {
    KeptClones::open(&data.lab()).get(report.kept.as_ref()?).ok()
}

/// What somebody had brought to this moment before.
fn of_run_before(data: &Data, run: &Run, baseline: &str, point: &Point) -> Option<Kept> {
    let (all, _) = Runs::open(&data.lab()).list().ok()?;
    let same = |other: &&Run| {
        let record = &other.record;
        record.retry_of.as_ref() == Some(&run.record.id) && record.scope == Scope::Before(point.clone())
    };
    all.iter().filter(same).find_map(|other| {
        let report = other.report().ok()?;
        of_report(data, report.baselines.iter().find(|report| report.name == baseline)?)
    })
}

/// Clones on which everything was done again, up to there.
fn fresh(output: &Output, data: &Data, run: &Run, baseline: &str, scope: Scope) -> Result<Kept, CliError> {
    let pool = Pool::of(data, &[]).map_err(CliError::input)?;
    let mut again = Again::of(data, run, &[run.scenarios()], Some(baseline))?;
    again.manner.keep = Keep::Always;
    let id = &run.record.id;
    let validated = validate::watch(output, &again.batch(data, &pool, scope))?;
    let reports = validated.iter().flat_map(|one| &one.report.baselines);
    let report = reports.last().ok_or_else(|| CliError::Failed(format!("run {id} could not be tried again")))?;
    let kept = of_report(data, report);
    let kept =
        kept.ok_or_else(|| CliError::Failed(format!("run {id} again: no clones were kept: {}", report.reason)))?;
    // Where it went another way, that is what there is to look into.
    let word = if report.verdict == Judgement::Missing { "" } else { ": this time it went another way" };
    output.note(format!("{}{word}; kept as {}", report.reason, kept.record.name));
    Ok(kept)
}
