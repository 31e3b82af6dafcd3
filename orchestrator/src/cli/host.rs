//! `patchlab host`: managed hosts.

use clap::{Args, Subcommand};
use patchlab_protocol::{
    Digest,
    description::{Kernel, KernelState},
    inventory::VersionParts,
};
use serde_json::json;

use super::{CliError, Client, Exit, Global, Output, client::segment, enroll::Enroll, machine, token::TokenCommand};
use crate::{
    api::MachineStory,
    deploy::survey::{Described, HOURS, Package},
    store::{Host, HostTrust, Survey},
};

/// Managed hosts.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Tokens by which hosts enrol themselves
    #[command(subcommand)]
    Token(TokenCommand),
    /// Enrol a host from here: makes its keys and writes the folder that its agent runs from
    Enroll(Enroll),
    /// List hosts
    List,
    /// Show one host
    Show(Show),
    /// Give the SNMP users that this server shares with a host new keys, by the host's own table, and see that they count
    #[command(name = "rotate-keys", after_help = ROTATE_EXAMPLES)]
    RotateKeys {
        /// Its name
        name: String,
    },
    /// Say which virtual machine a host is: a snapshot of it is taken before each order
    Machine(machine::Machine),
    /// List the snapshots of hosts that are virtual machines
    Snapshots,
    /// Bring a host back to its snapshot from before an order, when nothing else does
    Revert(machine::Revert),
    /// Go on without a host's snapshot
    Merge(machine::Merge),
    /// Have a host read anew what is installed there, and show it
    #[command(after_help = INVENTORY_EXAMPLES)]
    Inventory {
        /// Its name
        name: String,
    },
}

const INVENTORY_EXAMPLES: &str = "Example: patchlab host inventory web-1

Hosts are read by themselves: when they ring, and once an hour. This reads one now, whatever it thinks has changed.";

const ROTATE_EXAMPLES: &str = "Example: patchlab host rotate-keys web-1

The old keys are refused from then on, whatever the host's agent.toml says. When the host does not answer, run it again later: old and new
keys are tried until it does.";

const SHOW_EXAMPLES: &str = "Examples:
  patchlab host show web-1
  patchlab host show web-1 --packages
  patchlab host show web-1 --services
  patchlab host show web-1 --profile --json week.json";

/// A host to show.
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub struct Show {
    /// Its name
    name: String,
    /// What is installed there, as it last said
    #[arg(long, conflicts_with_all = ["profile", "services"])]
    packages: bool,
    /// Its services and the ports that it listens on, as it last said
    #[arg(long, conflicts_with = "profile")]
    services: bool,
    /// How busy its week is, by hours (UTC), and its long-running jobs, as it last said
    #[arg(long)]
    profile: bool,
}

impl HostCommand {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, CliError> {
        let client = Client::new(global)?;
        let output = global.output();
        match self {
            Self::Enroll(enroll) => {
                let host = enroll.run(&client).await?;
                output.line(format!("{}\t{}", host.enrolled.name, host.enrolled.public_key.id()));
                output.json(&host)?;
            }
            Self::Token(token) => token.run(&client, &output).await?,
            Self::List => {
                let hosts: Vec<Host> = client.get("hosts").await?;
                let rows: Vec<_> = hosts
                    .iter()
                    .map(|host| {
                        let e = &host.enrolled;
                        let class = host.class.clone().unwrap_or_else(|| "-".into());
                        let order = host.current_order.map_or_else(|| "-".into(), |digest| digest.short());
                        let seen = host.seen_at.as_deref().map_or_else(|| "never".into(), |at| output.moment(at));
                        let [root, revocation, offer] = believes(&host.trust);
                        let address = e.address.to_string();
                        vec![e.name.clone(), e.site.clone(), class, address, order, seen, root, revocation, offer]
                    })
                    .collect();
                let header = ["host", "site", "class", "address", "has order", "last contact"];
                output.table(&[header.as_slice(), &TRUST_HEADER].concat(), &rows);
                output.json(&hosts)?;
            }
            Self::Machine(machine) => return machine.run(&client, &output).await,
            Self::Snapshots => return machine::list(&client, &output).await,
            Self::Revert(revert) => return revert.run(&client, &output).await,
            Self::Merge(merge) => return merge.run(&client, &output).await,
            Self::Show(Show { name, packages: false, services: false, profile: false }) => {
                let host: Host = client.get(&format!("hosts/{}", segment(&name))).await?;
                let survey: Survey = client.get(&format!("hosts/{}/survey", segment(&name))).await?;
                let story: MachineStory = client.get(&format!("hosts/{}/machine", segment(&name))).await?;
                show(&output, &host, survey.description.as_ref(), &story);
                let mut value = serde_json::to_value(&host).map_err(CliError::failed)?;
                value["description"] = json!(survey.description);
                value["machine"] = json!(story.machine);
                value["snapshot"] = json!(story.snapshot);
                output.json(&value)?;
            }
            Self::RotateKeys { name } => {
                let host: Host = client.post(&format!("hosts/{}/keys", segment(&name)), &json!({})).await?;
                output.line(format!(
                    "{name}: new keys for its deployer and its key administrator count; the old ones are refused"
                ));
                output.json(&host)?;
            }
            Self::Inventory { name } => {
                let path = format!("hosts/{}/inventory", segment(&name));
                let survey: Survey = client.post(&path, &json!({})).await?;
                show_packages(&output, &survey)?;
            }
            Self::Show(Show { name, packages, services, .. }) => {
                let survey: Survey = client.get(&format!("hosts/{}/survey", segment(&name))).await?;
                match (packages, services) {
                    (true, _) => show_packages(&output, &survey)?,
                    (_, true) => show_services(&output, &survey)?,
                    _ => show_week(&output, &survey)?,
                }
            }
        }
        Ok(Exit::Passed)
    }
}

/// What stands over [`believes`].
const TRUST_HEADER: [&str; 3] = ["root", "revocations", "offer"];

/// Versions of the root and of the revocation list that a host has, and what became of what it is owed.
fn believes(trust: &HostTrust) -> [String; 3] {
    let held = trust.held.as_ref();
    let version = |version: Option<u32>| version.map_or_else(|| "-".into(), |version| version.to_string());
    let (root, revocation) = (held.map(|held| held.root_version), held.map(|held| held.revocation_version));
    [version(root), version(revocation), trust.offer.to_string()]
}

/// Every host with what it believes, and why it does not believe the newest.
pub(super) fn trust_table(output: &Output, hosts: &[Host]) {
    let rows: Vec<_> = hosts
        .iter()
        .map(|host| {
            let [root, revocation, offer] = believes(&host.trust);
            vec![host.enrolled.name.clone(), root, revocation, offer, host.trust.reason.clone()]
        })
        .collect();
    if !rows.is_empty() {
        output.table(&["host", TRUST_HEADER[0], TRUST_HEADER[1], TRUST_HEADER[2], "reason"], &rows);
    }
}

/// Services and ports.
fn show_services(output: &Output, survey: &Survey) -> Result<(), CliError> {
    let (Some(described), Some(at)) = (&survey.description, &survey.description_at) else {
        output.note("not read yet: it is read when the host answers");
        return output.json(&json!({ "at": null }));
    };
    let said = &described.description;
    let (services, ports) = (said.services.len(), said.ports.len());
    output.note(format!("{services} services and {ports} ports, as of {}", output.moment(at)));
    let rows: Vec<_> =
        said.services.iter().map(|s| vec![s.unit.clone(), s.enabled.clone(), s.active.clone()]).collect();
    output.table(&["service", "starts", "now"], &rows);
    let unit = |unit: &Option<String>| unit.clone().unwrap_or_else(|| "-".into());
    let rows: Vec<_> = said
        .ports
        .iter()
        .map(|p| vec![format!("{}/{}", p.port, p.transport), p.address.to_string(), unit(&p.unit)])
        .collect();
    output.table(&["port", "address", "service"], &rows);
    output.json(&json!({ "at": at, "services": said.services, "ports": said.ports }))
}

fn show(output: &Output, host: &Host, described: Option<&Described>, story: &MachineStory) {
    let (enrolled, none) = (&host.enrolled, || "none".to_owned());
    let digest = |digest: Option<Digest>| digest.map_or_else(none, |digest| digest.to_string());
    let [root, revocation, offer] = believes(&host.trust);
    let offer = if host.trust.reason.is_empty() { offer } else { format!("{offer}: {}", host.trust.reason) };
    let said = |part: fn(&Described) -> &str| match described.map(part) {
        Some("") | None => "not said".to_owned(),
        Some(word) => word.to_owned(),
    };
    let [running, installed] = kernels(described.map_or(&[], |described| &described.description.kernels));
    output.pairs(&[
        ("host", enrolled.name.clone()),
        ("site", enrolled.site.clone()),
        ("location", said(|d| &d.description.tags.location)),
        ("function", said(|d| &d.description.tags.function)),
        ("machine", said(|d| &d.description.machine)),
        ("kernel", running),
        ("kernels on disk", installed),
        ("class", host.class.clone().unwrap_or_else(|| "not heard yet".into())),
        ("address", enrolled.address.to_string()),
        ("last contact", host.seen_at.as_deref().map_or_else(|| "never".into(), |at| output.moment(at))),
        ("has order", digest(host.current_order)),
        ("enrolled", output.moment(&host.enrolled_at)),
        ("key", enrolled.public_key.id().to_string()),
        ("SNMP engine", enrolled.engine_id.to_string()),
        ("root", root),
        ("revocations", revocation),
        ("offer", offer),
        ("pinned root", enrolled.root.to_string()),
        ("payloads", enrolled.payload_uri.clone()),
        ("result head", digest(host.result_head)),
        ("audit head", digest(host.audit_head)),
        ("snapshots of", machine::of(story)),
        ("snapshot", machine::snapshot(story)),
    ]);
}

/// Which kernel runs, and which are on the disk.
fn kernels(told: &[Kernel]) -> [String; 2] {
    let named = |is_one: fn(KernelState) -> bool| {
        let names: Vec<&str> = told.iter().filter(|k| is_one(k.state)).map(|k| &*k.release).collect();
        if names.is_empty() { "not said".to_owned() } else { names.join(", ") }
    };
    [named(|state| state != KernelState::Installed), named(|state| state != KernelState::RunningOnly)]
}

fn show_packages(output: &Output, survey: &Survey) -> Result<(), CliError> {
    let installed: Vec<_> = survey.packages.installed().collect();
    match (&survey.packages.inventory, &survey.packages_at) {
        (Some(digest), Some(at)) => {
            let at = output.moment(at);
            output.note(format!("{} packages, as of {at}, digest {digest}", installed.len()));
        }
        _ => output.note("not read yet: it is read when the host answers"),
    }
    let row = |p: &&Package| vec![p.name.clone(), p.arch.clone(), p.version.clone(), built_from(p)];
    let mut rows: Vec<_> = installed.iter().map(row).collect();
    rows.sort();
    output.table(&["package", "arch", "version", "source"], &rows);
    output.json(&json!({
        "inventory": survey.packages.inventory, "change": survey.packages.change, "at": survey.packages_at,
        "packages": installed.iter().map(|package| told(package)).collect::<Vec<_>>(),
    }))
}

/// The source's name, and its version where that is another; `-` when the host does not say.
fn built_from(package: &Package) -> String {
    match &package.source {
        None => "-".to_owned(),
        Some(source) if source.version == package.version => source.name.clone(),
        Some(source) => format!("{} {}", source.name, source.version),
    }
}

/// A package with the parts of its version.
fn told(package: &Package) -> serde_json::Value {
    json!({
        "index": package.index, "change": package.change, "name": package.name, "arch": package.arch,
        "version": package.version, "parts": VersionParts::of(&package.version), "source": package.source,
    })
}

fn show_week(output: &Output, survey: &Survey) -> Result<(), CliError> {
    match &survey.week_at {
        Some(at) => output.note(format!(
            "{} of {HOURS} hours were seen, as of {}; shares of the whole host",
            survey.week.len(),
            output.moment(at)
        )),
        None => output.note("not read yet: it is read when the host answers"),
    }
    let rows: Vec<_> = survey
        .week
        .iter()
        .map(|hour| {
            let share = |mille: u32| format!("{}.{} %", mille / 10, mille % 10);
            let (sessions, weeks) = (hour.sessions.to_string(), hour.weeks.to_string());
            vec![name_of(hour.hour), share(hour.cpu), share(hour.memory), share(hour.disk), sessions, weeks]
        })
        .collect();
    output.table(&["hour", "processor", "memory", "disk", "sessions", "weeks"], &rows);
    let jobs = survey.description.iter().flat_map(|described| &described.description.jobs);
    let rows: Vec<_> = jobs
        .clone()
        .map(|job| {
            let (takes, uses) = (format!("{} min", job.minutes), format!("{} %", job.processors_percent));
            vec![job.unit.clone(), name_of(job.hour), takes, uses, job.weeks.to_string()]
        })
        .collect();
    if !rows.is_empty() {
        output.table(&["long-running job", "begins", "takes", "of one processor", "weeks"], &rows);
    }
    output.json(&json!({ "at": survey.week_at, "hours": survey.week, "jobs": jobs.collect::<Vec<_>>() }))
}

/// `Mon 00:00` of hour 1.
fn name_of(hour: u32) -> String {
    let hour = hour.saturating_sub(1);
    let day = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"][(hour / 24 % 7) as usize];
    format!("{day} {:02}:00", hour % 24)
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::inventory::Source;

    use super::*;

    #[test]
    fn a_package_is_told_with_the_parts_of_its_version_and_without_a_source_that_the_host_does_not_say() {
        let package = |source| Package {
            index: 1,
            change: 2,
            name: "web".into(),
            arch: "amd64".into(),
            version: "1:2-3+b1".into(),
            source,
        };
        let (silent, said) = (package(None), package(Source::new("web", "1:2-3")));
        assert_eq!((built_from(&silent), built_from(&said)), ("-".into(), "web 1:2-3".into()));
        assert_eq!(built_from(&package(Source::new("web", "1:2-3+b1"))), "web");
        assert_eq!(told(&silent)["source"], serde_json::Value::Null);
        assert_eq!(told(&said)["parts"], json!({ "epoch": 1, "version": "2", "release": "3+b1" }));
        assert_eq!(told(&said)["source"]["version"], "1:2-3");
    }

    #[test]
    fn the_kernel_that_runs_is_told_beside_those_on_the_disk() {
        let on_disk = ["6.1.0-28", "6.1.0-29"].map(str::to_owned);
        let told = |running: Option<&str>| kernels(&Kernel::all(running, &on_disk));
        assert_eq!(told(Some("6.1.0-28")), ["6.1.0-28", "6.1.0-28, 6.1.0-29"]);
        assert_eq!(told(Some("6.8.0")), ["6.8.0", "6.1.0-28, 6.1.0-29"]);
        assert_eq!(kernels(&[]), ["not said", "not said"], "an older agent");
    }

    #[test]
    fn hours_of_the_week_have_names() {
        for (hour, name) in [(1, "Mon 00:00"), (24, "Mon 23:00"), (25, "Tue 00:00"), (168, "Sun 23:00")] {
            assert_eq!(name_of(hour), name);
        }
    }
}
