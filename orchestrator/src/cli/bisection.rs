//! What `lab validate` says of a rejected order that it has split, and the order that it offers instead.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use patchlab_check::written;
use patchlab_lab::{
    ArtifactStore, Baseline,
    report::{BisectionReport, Report},
    runs::Scope,
};
use patchlab_protocol::document::Order;

use super::{
    CliError, Output,
    board::{Board, Orders},
};
use crate::{
    draft::render,
    lab::{bisection, validate::Batch},
    order::Written,
};

/// Whether a rejected order of several packages is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bisect {
    /// When there is something to split
    Auto,
    /// Never
    Never,
}

/// Splits a rejected order, and puts what was found into its report.
pub(super) fn split(
    output: &Output,
    batch: &Batch<'_>,
    (validated, path): (&(Order, Vec<Baseline>), &Path),
    report: &mut Report,
    artifacts: &ArtifactStore,
) -> Result<(), CliError> {
    let failed = |error: anyhow::Error| CliError::Failed(format!("splitting {}: {error:#}", validated.0.id));
    let is_whole = batch.scope == Scope::Whole;
    let Some(parts) = bisection::splittable(&validated.0, report, artifacts).map_err(failed)?.filter(|_| is_whole)
    else {
        return Ok(());
    };
    let mut board = Board::new(output.voice(), Orders::Several);
    let begins = &mut |packages: &BTreeSet<String>| {
        output.note(format!("{}: which package breaks it? trying {}", validated.0.id, listed(packages)));
    };
    let found = bisection::split(batch, validated, report, &parts, begins, &mut |seen| board.see(seen));
    drop(board);
    let found = found.map_err(failed)?;
    print(output, &report.id, &found);
    if !found.passing.is_empty() {
        let offered = offer(path, &found.passing)?;
        output.line(format!(
            "  {} pass{} without: {}  (patchlab lab validate --order {})",
            listed(&found.passing),
            if found.passing.len() == 1 { "es" } else { "" },
            offered.display(),
            offered.display()
        ));
    }
    report.bisection = Some(found);
    Ok(())
}

/// Prints what the split found.
pub(super) fn print(output: &Output, order: &str, found: &BisectionReport) {
    let tries = found.tries;
    output.line(format!("{order}: split, in {tries} validation{}", if tries == 1 { "" } else { "s" }));
    for breaking in &found.breaking {
        let with = match breaking.with.is_empty() {
            true => String::new(),
            false => format!(" (with {}, which it needs)", listed(&breaking.with)),
        };
        let verb = if breaking.packages.len() == 1 { "breaks it" } else { "break it together" };
        output.line(format!("  {} {verb}{with}: {}", listed(&breaking.packages), breaking.reason));
    }
    if found.limited {
        output.line("  the limit of validations was reached: fewer packages may be to blame, and more may pass");
    }
}

fn listed<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Writes an order of the packages that pass, beside the one that was rejected.
fn offer(path: &Path, passing: &[String]) -> Result<PathBuf, CliError> {
    let mut order: Written = written::read(path).map_err(CliError::input)?;
    let passes = |name: &str| passing.iter().any(|passing| passing == name);
    order.id += "-passing";
    for change in &mut order.change {
        // Every file is named below, by its digest: those that were given by path too.
        change.packages.clear();
        change.upgrade.retain(|upgrade| passes(upgrade.name.as_str()));
        change.file.retain(|file| passes(file.name.as_str()));
        change.replaces.retain(|old| passes(old.name.as_str()));
    }
    let names: Vec<String> = order
        .change
        .iter()
        .flat_map(|change| &change.file)
        .map(|file| format!("{} {}", file.name, file.version))
        .collect();
    order.title = names.join(", ").chars().take(200).collect();
    let offered = path.with_extension("passing.toml");
    let text = render(&order, "what passed of another order").map_err(CliError::failed)?;
    std::fs::write(&offered, text).map_err(|error| CliError::Failed(format!("{}: {error}", offered.display())))?;
    Ok(offered)
}
