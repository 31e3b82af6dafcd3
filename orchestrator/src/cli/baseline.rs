//! `patchlab baseline`: stored systems that clones are made from. All but `draft` need no server.

mod draft;
mod show;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use patchlab_check::written::ByteSize;
use patchlab_lab::{
    Baseline, Manifest,
    artifact::ArtifactStore,
    baseline::{
        self, Baselines, BuildError, Built, DomainError, Imported, Left, Offer, OrderName, ParcelError, Patch, Policy,
        PoolFile, Pruned, Refreeze, StoreError, SuccessorError, Weight,
    },
    diff::{self, diff},
    gc::Mode,
    room::Bytes,
    worker::Launcher,
};
use patchlab_protocol::{Audience, PublicKey, Role, SigningKey, document::PackageFile, envelope::digest_of};
use serde_json::json;

use super::{CliError, Exit, Global, Output, progress::Progress};
use crate::{
    lab::{
        job::{Job, launcher},
        successor::leave_patched,
    },
    legible,
    order::compile_file,
    place::{Data, private_folder},
    trust::{baseline as seal, key, release, root, succession::may_succeed},
};

/// Baselines.
#[derive(Debug, Subcommand)]
pub enum BaselineCommand {
    /// Build a baseline from a recipe, boot it once and freeze it; one that is there already is taken from the store
    #[command(after_help = BUILD_EXAMPLES)]
    Build {
        /// The recipe
        #[arg(value_name = "RECIPE.toml")]
        recipe: PathBuf,
    },
    /// Write a recipe of a baseline as near as can be to what a host has installed, and say what is not
    #[command(after_help = draft::EXAMPLES)]
    Draft(draft::DraftCommand),
    /// List baselines
    List,
    /// Show what one is made of
    Show {
        /// name, name@n or digest
        name: String,
    },
    /// Say what differs between two: packages, files, units, ports, kernel
    #[command(after_help = DIFF_EXAMPLES)]
    Diff {
        /// name, name@n or digest
        from: String,
        /// name, name@n or digest
        to: String,
    },
    /// Freeze one again by a cold boot of its disk, when it no longer fits this host's QEMU or processor
    #[command(after_help = REFREEZE_EXAMPLES)]
    Refreeze {
        /// name, name@n or digest
        name: String,
        /// Also when it still fits
        #[arg(long)]
        always: bool,
    },
    /// Make one's successor (name@n+1) by a released order, so that the lab ages with the hosts that it stands for
    #[command(after_help = SUCCESSOR_EXAMPLES)]
    Successor {
        /// name, name@n or digest
        name: String,
        /// The order
        #[arg(long, value_name = "ORDER.toml")]
        order: PathBuf,
        /// Its release; ORDER.release.json beside it unless given
        #[arg(long, value_name = "FILE")]
        release: Option<PathBuf>,
        /// A releaser's public key (FILE.pub), beside those of this data folder's root document; may be given more than once
        #[arg(long, value_name = "KEY.pub")]
        trust: Vec<PathBuf>,
    },
    /// Write one with its pool to one signed file, for another lab host
    #[command(after_help = EXPORT_EXAMPLES)]
    Export {
        /// name, name@n or digest
        name: String,
        /// The new file; never overwritten
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// A keeper's key; unless given, this lab's own, made at the first export
        #[arg(long, value_name = "FILE")]
        sign_key: Option<PathBuf>,
    },
    /// Take in one that another lab host exported, if somebody whom you trust signed it
    #[command(after_help = EXPORT_EXAMPLES)]
    Import {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// A keeper's public key (FILE.pub); may be given more than once. This lab's own is trusted
        #[arg(long, value_name = "KEY.pub")]
        trust: Vec<PathBuf>,
    },
    /// Read every file of one again, its pool too, and compare digests
    Verify {
        /// name, name@n or digest
        name: String,
    },
    /// Take away what is not worth its room: all but the newest of each name, and more where a budget asks for it
    #[command(after_help = PRUNE_EXAMPLES)]
    Prune {
        /// How many of each name stay
        #[arg(long, default_value = "3", value_name = "N")]
        keep: NonZeroUsize,
        /// What all of them may take on the disk, e.g. 20GiB; the oldest go first
        #[arg(long, value_name = "SIZE")]
        budget: Option<ByteSize>,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Take one away; its package files stay, since orders may need them
    Rm {
        /// name, name@n or digest
        name: String,
    },
}

const BUILD_EXAMPLES: &str = "Examples:
  patchlab baseline build images/debian-12-web.toml
  patchlab baseline build web-01.toml --json built.json

A recipe installs a system from its suite (kind = \"mmdebstrap\"), adds to a cloud image what the lab needs (\"cloud-image\"), or takes the
disk of a system that somebody installed as it is (\"disk\"), or captures a machine of a libvirt that is switched off (\"domain\"):
  source = { kind = \"domain\", name = \"web-02\", secrets = \"scrub\" }
An image is refused unless it has the digest that the recipe says, is whole in itself, and sound. A system that somebody else made is refused
when it holds secrets, and they are named, unless its source says secrets = \"scrub\" (they are overwritten) or \"keep\".";

const DIFF_EXAMPLES: &str = "Examples:
  patchlab baseline diff debian-12-web@1 debian-12-web@2
  patchlab baseline diff debian-12-web@1 debian-12-web@2 --json diff.json

A screen's worth is shown; the JSON has every file. What differs between any two runs of one machine (caches, logs, identities) is left out.";

const SUCCESSOR_EXAMPLES: &str = "Examples:
  patchlab lab validate --order order.toml --baseline debian-12-web --sign-key releaser.pem
  patchlab baseline successor debian-12-web --order order.toml --trust releaser.pem.pub
  patchlab baseline diff debian-12-web@1 debian-12-web@2

The order is put on a machine of the baseline's by the agent, as on a host; the agent is taken away again, and the machine's disk is booted
and frozen. From then on the name means the successor; the parent stays until it is pruned or removed. The release must prove the order on
this very baseline.";

const EXPORT_EXAMPLES: &str = "Examples:
  patchlab key generate --role keeper --out keeper.pem
  patchlab baseline export debian-12-web --out web.baseline --sign-key keeper.pem
  patchlab baseline import web.baseline --trust keeper.pem.pub

A baseline's memory is executable input: a file that is unsigned, signed by a key that is not trusted, altered or cut short is refused, and
the store stays as it was. A number that is taken here becomes the next. The file is a tar, compressed by zstd.";

const PRUNE_EXAMPLES: &str = "Examples:
  patchlab baseline prune --dry-run
  patchlab baseline prune --keep 1 --budget 20GiB

The newest of each name always stays, and so do those that a machine which runs or a kept clone was made from, and the one that one of the
newest was made from. Package files stay, since orders may need them. What cannot be read is named and left to you.";

const REFREEZE_EXAMPLES: &str = "Examples:
  patchlab baseline refreeze debian-12-web
  patchlab baseline refreeze debian-12-web@1 --always

What comes of it has the next number and the old one as its parent; the old one stays until `baseline rm` takes it away. `baseline build`
does the same by itself where what it built before no longer fits.";

impl BaselineCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let baselines = Baselines::open(&data.lab());
        let output = global.output();
        match self {
            Self::Build { recipe } => {
                make(&output, "taken from the store", |launcher, tell| baselines.build(&recipe, launcher, tell))?;
            }
            Self::Draft(command) => return command.run(&data, global),
            Self::List => list(&baselines, &output)?,
            Self::Show { name } => show::show(&baselines.get(&name).map_err(classify)?, &output)?,
            Self::Diff { from, to } => compare(&baselines, &output, [&from, &to])?,
            Self::Refreeze { name, always } => {
                let when = if always { Refreeze::Always } else { Refreeze::IfUnfit };
                make(&output, "fits this host", |launcher, tell| baselines.refreeze(&name, when, launcher, tell))?;
            }
            Self::Successor { name, order, release, trust } => {
                let released = Released { order, release, trust };
                successor(&data, &baselines, &output, &name, &released)?;
            }
            Self::Export { name, out, sign_key } => export(&data, &baselines, &output, (&name, &out), sign_key)?,
            Self::Import { file, trust } => import(&data, &baselines, &output, &file, &trust)?,
            Self::Verify { name } => verify(&data, &baselines, &output, &name)?,
            Self::Prune { keep, budget, dry_run } => {
                let policy = Policy { keep: keep.get(), budget: budget.map(|size| Bytes(size.bytes())) };
                prune(&baselines, &output, policy, if dry_run { Mode::DryRun } else { Mode::Collect })?;
            }
            Self::Rm { name } => {
                let (removed, digest) = baselines.remove(&name).map_err(classify)?;
                output.fields(&[&removed, "removed"]);
                output.json(&json!({ "removed": removed, "digest": digest }))?;
            }
        }
        Ok(Exit::Passed)
    }
}

/// Makes a baseline, and tells how that goes; or finds it made: `found`.
fn make(
    output: &Output,
    found: &str,
    made: impl FnOnce(&Launcher, &mut dyn FnMut(baseline::Progress)) -> Result<Built, BuildError>,
) -> Result<(), CliError> {
    let mut progress = Progress::new(output.voice());
    let launcher = launcher(Job::Freeze).map_err(CliError::failed)?;
    let built = made(&launcher, &mut |told| {
        let line = format!("{}/{} {}", told.step, baseline::Progress::STEPS, told.what);
        match told.weight {
            Weight::Passing => progress.now(&line),
            Weight::Lasting => progress.note(&line),
        }
    })
    .map_err(classify_build)?;
    let took = progress.elapsed();
    drop(progress);
    let whence = match &built {
        Built::New(_) => "built",
        Built::Stored(_) => found,
        Built::Refrozen(_) => "frozen again",
    };
    let baseline = built.baseline();
    output.fields(&[&baseline.full_name(), &baseline.digest.to_string(), whence]);
    output.note(format!("{whence}, {}", legible::duration(took)));
    let mut shown = summary(baseline);
    shown["from_store"] = json!(matches!(built, Built::Stored(_)));
    shown["refrozen"] = json!(matches!(built, Built::Refrozen(_)));
    shown["ms"] = json!(took.as_millis() as u64);
    output.json(&shown)
}

/// An order with its release, as named on the command line.
struct Released {
    order: PathBuf,
    release: Option<PathBuf>,
    trust: Vec<PathBuf>,
}

fn successor(
    data: &Data,
    baselines: &Baselines,
    output: &Output,
    name: &str,
    released: &Released,
) -> Result<(), CliError> {
    let parent = baselines.get(name).map_err(classify)?;
    let artifacts = ArtifactStore::open(data.artifacts()).map_err(CliError::failed)?;
    let order = compile_file(&released.order, &artifacts).map_err(CliError::from)?;
    let digest = digest_of(order.clone());
    let path = released.release.clone().unwrap_or_else(|| released.order.with_extension("release.json"));
    let release = release::read(&path).map_err(CliError::input)?;
    let mut releasers: Vec<PublicKey> = Vec::new();
    if data.root_document().exists() {
        let in_force = root::read(&data.root_document()).map_err(CliError::input)?;
        releasers.extend(in_force.root.keys(Role::Releaser).cloned());
    }
    for path in &released.trust {
        releasers.push(key::public_half(path, Role::Releaser).map_err(CliError::input)?.public);
    }
    let full_name = parent.full_name();
    let signer = may_succeed(&release, &releasers, digest, (&full_name, parent.digest))
        .map_err(|error| CliError::Refused(format!("{full_name} gets no successor by order {}: {error}", order.id)))?;
    output.note(format!("order {} was released on {full_name} by {signer}", order.id));
    let patch = Patch {
        order: OrderName { id: order.id.clone(), digest },
        files: order.install.iter().map(pool_file).collect(),
    };
    let mut patched = |left: &Left<'_>, tell: &mut dyn FnMut(&str)| {
        let (disk, status) = (left.disk(), left.status());
        leave_patched(data, &parent, &order, (&disk, &status), tell)
            .map_err(|error| SuccessorError::new(format!("{error:#}")))
    };
    make(output, "made before, by this very order", |launcher, tell| {
        baselines.succeed(&parent, &patch, &mut patched, launcher, tell)
    })
}

fn pool_file(file: &PackageFile) -> PoolFile {
    PoolFile {
        name: file.name.clone(),
        version: file.version.clone(),
        arch: file.arch.clone(),
        size: file.size,
        sha256: file.sha256,
    }
}

fn list(baselines: &Baselines, output: &Output) -> Result<(), CliError> {
    let (all, wrong) = baselines.list_readable().map_err(classify)?;
    let row = |baseline: &Baseline| {
        let record = &baseline.record;
        let size: u64 = record.files.values().map(|file| file.size).sum();
        vec![
            baseline.full_name(),
            format!("{} {} {}", record.os.family, record.os.release, record.os.arch),
            record.pool.len().to_string(),
            format!("{} MiB", size >> 20),
            baseline.digest.short(),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    output.table(&["baseline", "system", "packages", "size", "digest"], &rows);
    output.json(&all.iter().map(summary).collect::<Vec<_>>())?;
    // One that cannot be read hides no other, and is no success.
    let mut wrong = wrong.into_iter();
    let first = wrong.next();
    wrong.for_each(|error| output.note(error.to_string()));
    first.map_or(Ok(()), |error| Err(classify(error)))
}

fn compare(baselines: &Baselines, output: &Output, names: [&str; 2]) -> Result<(), CliError> {
    let [from, to] = names.map(|name| baselines.get(name).map_err(classify));
    let (from, to) = (from?, to?);
    let found = diff(&from.manifest().map_err(classify)?, &to.manifest().map_err(classify)?);
    output.note(format!("from {} to {}", from.full_name(), to.full_name()));
    diff::summary(&found).lines().for_each(|line| output.line(line));
    output.json(&json!({ "from": from.full_name(), "to": to.full_name(), "diff": found }))
}

fn verify(data: &Data, baselines: &Baselines, output: &Output, name: &str) -> Result<(), CliError> {
    let baseline = baselines.verify(name).map_err(classify)?;
    let artifacts = ArtifactStore::open(data.artifacts()).map_err(CliError::failed)?;
    for file in &baseline.record.pool {
        artifacts.verify(&file.sha256).map_err(|error| {
            let (baseline, name, version) = (baseline.full_name(), &file.name, &file.version);
            CliError::Failed(format!("baseline {baseline}: {name} {version} of its pool: {error}"))
        })?;
    }
    let (files, pool) = (baseline.record.files.len(), baseline.record.pool.len());
    let full_name = baseline.full_name();
    output.fields(&[&full_name, "intact", &format!("{files} files"), &format!("{pool} package files")]);
    output.json(&json!({ "baseline": full_name, "intact": true, "files": files, "pool": pool }))
}

fn export(
    data: &Data,
    baselines: &Baselines,
    output: &Output,
    (name, out): (&str, &Path),
    sign_key: Option<PathBuf>,
) -> Result<(), CliError> {
    let path = sign_key.map_or_else(|| own_key(data), Ok)?;
    let public = key::public_half(&path, Role::Keeper).map_err(CliError::input)?;
    let signing = SigningKey::read(&path).map_err(CliError::input)?;
    if signing.public() != public.public {
        return Err(CliError::Input(format!(
            "{} is not the public half of {}",
            key::public_path(&path).display(),
            path.display()
        )));
    }
    let mut seal =
        |baseline: &Baseline| seal::seal(baseline.full_name(), baseline.digest, &signing, jiff::Timestamp::now());
    let baseline = baselines.export(name, &mut seal, out).map_err(classify_parcel)?;
    let size = std::fs::metadata(out).map_or(0, |metadata| metadata.len());
    let (full_name, by) = (baseline.full_name(), public.public.id());
    output.fields(&[&full_name, &out.display().to_string(), &format!("{} MiB", size >> 20)]);
    output.note(format!("signed by {by}; who imports it trusts {}", key::public_path(&path).display()));
    show::holds_secrets(&baseline.record).into_iter().for_each(|what| output.note(what));
    output
        .json(&json!({ "baseline": full_name, "digest": baseline.digest, "file": out, "bytes": size, "signed_by": by }))
}

/// This lab's own keeper key, made when absent.
fn own_key(data: &Data) -> Result<PathBuf, CliError> {
    let path = data.keeper_key();
    if !path.exists() {
        private_folder(path.parent().unwrap_or(data.dir())).map_err(CliError::failed)?;
        key::generate(Role::Keeper, Audience::Production, &path).map_err(CliError::failed)?;
    }
    Ok(path)
}

fn import(data: &Data, baselines: &Baselines, output: &Output, file: &Path, trust: &[PathBuf]) -> Result<(), CliError> {
    let own = Some(data.keeper_key()).filter(|path| path.exists());
    let trusted = trust.iter().chain(&own).map(|path| key::public_half(path, Role::Keeper).map_err(CliError::input));
    let trusted = trusted.collect::<Result<Vec<_>, _>>()?;
    let mut vouches = None;
    let mut admit = |offer: Offer<'_>| {
        let signer = seal::admit(offer.seal, offer.record, &trusted).map_err(|error| error.to_string())?;
        vouches = Some((signer, offer.record));
        Ok(())
    };
    let imported = baselines.import(file, &mut admit).map_err(classify_parcel)?;
    let Some((signer, original)) = vouches else { return Err(CliError::Failed("nobody vouched for it".into())) };
    let (baseline, what) = match &imported {
        Imported::New(baseline) if baseline.digest == original => (baseline, "imported"),
        Imported::New(baseline) => (baseline, "imported under the next number: its own is taken"),
        Imported::There(baseline) => (baseline, "there already"),
    };
    output.fields(&[&baseline.full_name(), &baseline.digest.to_string(), what]);
    output.note(format!("signed by {signer}"));
    show::holds_secrets(&baseline.record).into_iter().for_each(|what| output.note(what));
    if let Some(reason) = baseline.unfit_here() {
        let name = baseline.full_name();
        output.note(format!("its clones boot here: {reason}; `patchlab baseline refreeze {name}` freezes it again"));
    }
    let mut shown = summary(baseline);
    shown["new"] = json!(matches!(imported, Imported::New(_)));
    shown["original"] = json!(original);
    shown["signed_by"] = json!(signer);
    output.json(&shown)
}

fn prune(baselines: &Baselines, output: &Output, policy: Policy, mode: Mode) -> Result<(), CliError> {
    let pruning = baselines.prune(policy, mode).map_err(classify)?;
    let gone = if mode == Mode::DryRun { "would go" } else { "gone" };
    let row = |one: &Pruned| {
        let fate = if one.stays { "stays" } else { gone };
        vec![one.baseline.clone(), fate.into(), Bytes(one.bytes).to_string(), one.why.to_string()]
    };
    let mut rows: Vec<_> = pruning.baselines.iter().map(row).collect();
    let nameless = pruning.nameless.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy());
    rows.extend(nameless.map(|name| {
        vec![name.chars().take(12).collect(), gone.into(), String::new(), "no name means it: its build died".into()]
    }));
    output.table(&["baseline", "", "size", "why"], &rows);
    for unreadable in &pruning.unreadable {
        output.note(format!("left as it is: {unreadable}"));
    }
    let kept = Bytes(pruning.kept_bytes());
    if let Some(budget) = policy.budget.filter(|budget| kept > *budget) {
        output.note(format!("{kept} stay, more than the budget of {budget}: none of these can go"));
    }
    output.json(&json!({ "dry_run": mode == Mode::DryRun, "kept_bytes": kept.0, "pruning": pruning }))
}

/// A baseline for programs, without the pool's hundreds of lines.
fn summary(baseline: &Baseline) -> serde_json::Value {
    let record = &baseline.record;
    json!({
        "name": baseline.full_name(),
        "digest": baseline.digest,
        "os": record.os,
        "kernel": record.frozen.kernel,
        "packages": record.pool.len(),
        "represents": record.represents,
        "accelerator": record.hardware.accelerator,
        "verified": record.verified.is_some(),
        "parent": record.parent,
        "order": record.order,
        "manifest_schema": Manifest::SCHEMA,
    })
}

fn classify_build(error: BuildError) -> CliError {
    if let BuildError::Step { source, .. } = &error
        && matches!(**source, BuildError::Secrets { .. })
    {
        return CliError::Refused(chain(&error));
    }
    let is_domain = |error: &BuildError| {
        matches!(
            error,
            BuildError::Domain(
                DomainError::Runs { .. }
                    | DomainError::Saved { .. }
                    | DomainError::Elsewhere { .. }
                    | DomainError::Unusable { .. }
            )
        )
    };
    let is_input = match &error {
        BuildError::Recipe(_) => true,
        BuildError::Step { source, .. } => {
            let of_recipe = matches!(
                **source,
                BuildError::NoSuchPackage { .. } | BuildError::Intake(_) | BuildError::OtherSystem { .. }
            );
            of_recipe || is_domain(source)
        }
        error @ BuildError::Domain(_) => is_domain(error),
        BuildError::Store(StoreError::Unknown { .. }) => true,
        _ => false,
    };
    let text = chain(&error);
    if is_input { CliError::Input(text) } else { CliError::Failed(text) }
}

fn classify_parcel(error: ParcelError) -> CliError {
    match error {
        ParcelError::NotAdmitted { .. } => CliError::Refused(error.to_string()),
        ParcelError::CutShort { .. }
        | ParcelError::Altered { .. }
        | ParcelError::Wrong { .. }
        | ParcelError::Taken(_) => CliError::Input(error.to_string()),
        ParcelError::Io { ref source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            CliError::Input(chain(&error))
        }
        ParcelError::Store(error) => classify(error),
        other => CliError::Failed(chain(&other)),
    }
}

fn classify(error: StoreError) -> CliError {
    match error {
        StoreError::Unknown { .. } => CliError::Input(error.to_string()),
        StoreError::Needed { .. } | StoreError::InUse { .. } => CliError::Refused(error.to_string()),
        other => CliError::Failed(chain(&other)),
    }
}

/// An error and what caused it, on one line; a cause that the error already says is not said twice.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
