//! `patchlab order waive`: a person answers for one thing that the lab found against an order.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use jiff::Timestamp;
use patchlab_lab::report::{About, BaselineReport, Report};
use patchlab_protocol::{
    Envelope, SigningKey,
    document::{Order, Waived, Waiver},
    envelope::Predicate as _,
};

use super::{CliError, Client, Exit, Output, client::segment, order::story};
use crate::{api::Taken, legible, report::OrderStory, store::WaiverRow, window};

const EXAMPLES: &str = "Examples:
  patchlab order waive PO-2026-0001 --baseline debian-12-web@1 --scenario web-smoke --hosts 2 --until +7d \\
      --owner ann --reason 'the start page moves on Friday' --key approver.pem
  patchlab order waive PO-2026-0001 --baseline debian-12-web@1 --way-back --hosts 2 --until +7d \\
      --owner ann --reason 'hosts have snapshots' --key approver.pem
  patchlab order release PO-2026-0001

Waived are a scenario that fails with the order, and a way back that is not proven; each on each baseline by a waiver of its own. An order
that was rejected for a scenario was not rolled back in the lab: that needs one, too. Nothing else can be waived: not a lab that broke, not a
step that failed once and not again, not a verdict that says nothing.";

/// One thing that the lab found, to waive.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group(ArgGroup::new("what").required(true).args(["scenario", "way_back"])))]
pub struct Waive {
    /// Id or digest
    order: String,
    /// The baseline on which it was found, NAME@N
    #[arg(long, value_name = "NAME@N")]
    baseline: String,
    /// The scenario that fails there
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// That its way back is not proven there
    #[arg(long)]
    way_back: bool,
    /// Most hosts that may get the order so
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    hosts: u32,
    /// Until when, RFC 3339 or from now on (+7d); at most 90 days
    #[arg(long, value_name = "TIME", value_parser = until)]
    until: Timestamp,
    /// Who answers for it
    #[arg(long, value_name = "WHO")]
    owner: String,
    /// Why, in one line: hosts, reports and the audit log keep it
    #[arg(long)]
    reason: String,
    /// Your approver's key: it is read here and never leaves
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

fn until(text: &str) -> Result<Timestamp, String> {
    window::moment(text, Timestamp::now())
}

impl Waive {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        let story = story(client, &self.order).await?;
        let id = &story.order.id;
        let report = story.report().ok_or_else(|| {
            CliError::Refused(format!(
                "not-released: order {id} has no verdict: patchlab lab validate, then order verdict"
            ))
        })?;
        let baseline = of_name(&report, &self.baseline)?;
        let waived = match self.scenario {
            Some(name) => Waived::Scenario(name),
            None => Waived::WayBack,
        };
        // What is signed is what was looked at: the class is that of the order by its digest.
        let order: Order =
            client.document(&story.order.digest).await?.statement::<Order>().map_err(CliError::failed)?.predicate;
        let waiver = Waiver {
            order: story.order.digest,
            baseline: baseline.name.clone(),
            baseline_digest: baseline.digest,
            waived,
            class: order.class,
            hosts_at_most: self.hosts,
            owner: self.owner,
            reason: self.reason,
            at: Timestamp::now(),
            not_after: self.until,
        };
        waiver.check().map_err(CliError::Input)?;
        for found in found(baseline, &waiver.waived) {
            output.note(format!("{id}, {}: {found}", baseline.name));
        }
        output.note(format!(
            "{} answers for it on at most {} hosts of {}, until {}",
            waiver.owner,
            waiver.hosts_at_most,
            waiver.class,
            legible::moment(waiver.not_after)
        ));
        let key = SigningKey::read(&self.key).map_err(CliError::input)?;
        let envelope = Envelope::sign(waiver, &key);
        let taken: Taken = client.post(&format!("orders/{}/waivers", segment(id)), &envelope).await?;
        output.line(taken.digest.to_string());
        output.json(&taken)?;
        Ok(Exit::Passed)
    }
}

fn of_name<'r>(report: &'r Report, name: &str) -> Result<&'r BaselineReport, CliError> {
    report.baselines.iter().find(|baseline| baseline.name == name).ok_or_else(|| {
        let known: Vec<&str> = report.baselines.iter().map(|baseline| baseline.name.as_str()).collect();
        CliError::Input(format!("the verdict on {} is over no baseline {name:?}, but {}", report.id, known.join(", ")))
    })
}

/// What the lab found that this would waive, one line each.
fn found<'r>(baseline: &'r BaselineReport, waived: &Waived) -> Vec<&'r str> {
    let is_it = |about: &About| match (about, waived) {
        (About::Scenario { name, .. }, Waived::Scenario(wanted)) => name == wanted,
        (About::Rollback, Waived::WayBack) => true,
        _ => false,
    };
    baseline.objections.iter().filter(|one| is_it(&one.about)).map(|one| one.reason.as_str()).collect()
}

/// What `order show` says of waivers: those that the newest release rests on, and the others.
pub(super) fn pairs(output: &Output, story: &OrderStory) -> Vec<(&'static str, String)> {
    let line = |waiver: &WaiverRow| format!("{}, until {}", waiver.line(), output.moment(&waiver.not_after));
    let name = |waiver: &WaiverRow| match waiver.release.is_some() && waiver.release == story.release {
        true => "WAIVED",
        false => "waiver",
    };
    story.waivers.iter().map(|waiver| (name(waiver), line(waiver))).collect()
}
