//! What `lab validate` says of an order that fails that it has split, and the order that it offers instead.

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
    lab::{
        bisection::{self, SplitError},
        validate::Batch,
    },
    order::{Written, named_after},
};

/// Whether an order of several packages that fails is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bisect {
    /// When there is something to split
    Auto,
    /// Never
    Never,
}

/// What became of splitting an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    /// Its report says what was found.
    Told,
    /// There was nothing to split, or it did not come to its end, which was said: what was known before stands.
    Untold,
    /// Somebody ended it.
    Interrupted,
}

/// Splits an order that fails, and puts what was found into its report. Whatever happens here, the order's verdict stands.
pub(super) fn split(
    output: &Output,
    batch: &Batch<'_>,
    (validated, path): (&(Order, Vec<Baseline>), &Path),
    report: &mut Report,
    artifacts: &ArtifactStore,
) -> Split {
    let broke = |error: &dyn std::fmt::Display| {
        output.note(format!("{} was not split, its verdict stands: {error}", validated.0.id));
        Split::Untold
    };
    if batch.scope != Scope::Whole {
        return Split::Untold;
    }
    let parts = match bisection::splittable(&validated.0, report, artifacts) {
        Ok(Some(parts)) => parts,
        Ok(None) => return Split::Untold,
        Err(error) => return broke(&format!("{error:#}")),
    };
    let mut board = Board::new(output.voice(), Orders::Several);
    let begins = &mut |packages: &BTreeSet<String>| {
        output.note(format!("{}: which package breaks it? trying {}", validated.0.id, listed(packages)));
    };
    let found = bisection::split(batch, validated, report, &parts, begins, &mut |seen| board.see(seen));
    drop(board);
    let found = match found {
        Ok(found) => found,
        Err(SplitError::Interrupted) => {
            broke(&SplitError::Interrupted);
            return Split::Interrupted;
        }
        Err(error) => return broke(&error),
    };
    print(output, &report.id, &found);
    if !found.passing.is_empty() {
        let pass = format!("  {} pass{}", listed(&found.passing), if found.passing.len() == 1 { "es" } else { "" });
        match offer(path, &found.passing) {
            Ok(offered) => {
                let offered = offered.display();
                output.line(format!("{pass} without: {offered}  (patchlab lab validate --order {offered})"));
            }
            Err(error) => output.line(format!("{pass} without, but an order of them cannot be written: {error}")),
        }
    }
    report.bisection = Some(found);
    Split::Told
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
    order.id = named_after(&order.id, "-passing");
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
