//! `patchlab baseline draft`: a recipe from what a host has installed. The server says what that is.

use std::{fs, io::Write as _, path::PathBuf};

use clap::Args;
use patchlab_lab::{
    baseline::Os,
    recipe::draft::{self, Draft, DraftError, Installed, Mirror, Unmatched},
};
use patchlab_protocol::PackageSystem;
use serde_json::json;

use super::super::{
    CliError, Client, Exit, Global, JsonTo, Output, client::segment, client_runtime, progress::Progress,
};
use crate::{
    place::Data,
    store::{Host, Survey},
};

/// A recipe to draft.
#[derive(Debug, Args)]
pub struct DraftCommand {
    /// The host whose packages the baseline is to have
    #[arg(long, value_name = "HOST")]
    from_host: String,
    /// Name of the baseline; the host's unless given
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Read index files here instead of the installer's own sources: an address, or a line "deb [signed-by=KEYRING] ADDRESS SUITE
    /// COMPONENT"; may be given more than once
    #[arg(long, value_name = "URL|LINE")]
    mirror: Vec<Mirror>,
    /// Where to write the recipe, or (-) to standard output; NAME.toml here unless given; never overwritten
    #[arg(long, value_name = "FILE|-")]
    out: Option<JsonTo>,
}

pub(super) const EXAMPLES: &str = "Examples:
  patchlab host inventory web-1
  patchlab baseline draft --from-host web-1
  patchlab baseline draft --from-host web-1 --name debian-12-web --out images/debian-12-web.toml --json drafted.json
  patchlab baseline draft --from-host web-1 --out - --mirror 'deb https://mirror.example.org/debian bookworm main'

The packages are those that the host last reported to the server. Each is looked up in the suite's signed index files: the host's version
where they still have it, else the nearest. What the baseline will not have as the host has it is listed, here and in the file. A recipe names
no mirror: the build installs from the installer's own sources, wherever index files were read.";

impl DraftCommand {
    pub(super) fn run(self, data: &Data, global: &Global) -> Result<Exit, CliError> {
        let output = global.output();
        let to_stdout = self.out == Some(JsonTo::Stdout);
        if to_stdout && output.is_machine_read() {
            return Err(CliError::Input(
                "--out - and --json - both want standard output: give one of them a file".into(),
            ));
        }
        let name = self.name.clone().unwrap_or_else(|| self.from_host.clone());
        let to = match &self.out {
            Some(JsonTo::Stdout) => None,
            Some(JsonTo::File(path)) => Some(path.clone()),
            None => Some(PathBuf::from(format!("{name}.toml"))),
        };
        if let Some(path) = to.as_ref().filter(|path| path.exists()) {
            let path = path.display();
            return Err(CliError::Input(format!("{path} is there already: choose another file with --out")));
        }
        let (os, packages) = inventory(&self.from_host, global)?;
        let mut progress = Progress::new(output.voice());
        let host = (self.from_host.as_str(), &os, packages.as_slice());
        let drafted = draft::draft(&name, host, &self.mirror, &data.lab().index, &mut |step| progress.now(step));
        let took = progress.elapsed();
        drop(progress);
        let drafted = drafted.map_err(classify)?;
        match &to {
            Some(path) => write_new(path, &drafted.text())?,
            None => output.line(drafted.text().trim_end()),
        }
        if !to_stdout {
            show(&output, &drafted, to.as_ref());
        }
        output.note(format!(
            "{} of {} packages in the host's version, {} not; {}",
            drafted.exact,
            drafted.installed,
            drafted.unmatched.len(),
            crate::legible::duration(took)
        ));
        output.json(&json!({ "file": to, "ms": took.as_millis() as u64, "draft": drafted }))?;
        match &drafted.refused {
            Some(reason) => {
                output.note(format!("apt cannot install these together, so it cannot be built as it is: {reason}"));
                Ok(Exit::Inapplicable)
            }
            None => Ok(Exit::Passed),
        }
    }
}

/// The host's system and packages, as it last reported them.
fn inventory(name: &str, global: &Global) -> Result<(Os, Vec<Installed>), CliError> {
    let next = format!("run `patchlab host inventory {name}` while it answers");
    let (host, survey): (Host, Survey) = client_runtime(async {
        let client = Client::new(global)?;
        let host: Host = client.get(&format!("hosts/{}", segment(name))).await.map_err(|error| match error {
            CliError::Input(why) => CliError::Input(format!("{why}: enrol it (`patchlab host enroll`), then {next}")),
            other => other,
        })?;
        Ok((host, client.get(&format!("hosts/{}/survey", segment(name))).await?))
    })?;
    let unheard = || CliError::Input(format!("nobody knows yet what host {name} has installed: {next}"));
    let class = host.class.ok_or_else(unheard)?;
    let os = system(&class)
        .ok_or_else(|| CliError::Input(format!("host {name} says it is of class {class:?}, which is none")))?;
    if PackageSystem::of_distribution([os.family.as_str()]) == Some(PackageSystem::Rpm) {
        return Err(CliError::Input(format!(
            "host {name} ({class}) has rpm packages: a recipe of such a system names an image, which no list of packages makes; write one with kind = \"cloud-image\" or \"disk\""
        )));
    }
    let packages: Vec<Installed> = survey
        .packages
        .installed()
        .map(|one| Installed { name: one.name.clone(), arch: one.arch.clone(), version: one.version.clone() })
        .collect();
    if survey.packages_at.is_none() || packages.is_empty() { Err(unheard()) } else { Ok((os, packages)) }
}

/// `debian-12-x86_64`; a family's name may have dashes.
fn system(class: &str) -> Option<Os> {
    let mut parts = class.rsplitn(3, '-').map(str::to_owned);
    let (arch, release, family) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Os { family, release, arch })
}

fn show(output: &Output, drafted: &Draft, to: Option<&PathBuf>) {
    let row = |one: &Unmatched| {
        let here = one.mirror.clone().unwrap_or_else(|| "-".into());
        vec![one.name.clone(), one.arch.clone(), one.host.clone(), here, one.why.sentence()]
    };
    let rows: Vec<_> = drafted.unmatched.iter().map(row).collect();
    if !rows.is_empty() {
        output.table(&["package", "arch", "host", "mirror", "why"], &rows);
    }
    let file = to.map_or_else(String::new, |path| path.display().to_string());
    output.fields(&[&drafted.name, &file]);
}

fn write_new(path: &PathBuf, text: &str) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::Input(format!("cannot write {}: {error}", path.display()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

fn classify(error: DraftError) -> CliError {
    match error {
        DraftError::Name(_) | DraftError::NoSuite { .. } | DraftError::Elsewhere { .. } | DraftError::TooMany(_) => {
            CliError::input(error)
        }
        other => CliError::Failed(super::chain(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_names_family_release_and_architecture() {
        let os = system("opensuse-leap-15.6-x86_64").unwrap();
        assert_eq!((os.family.as_str(), os.release.as_str(), os.arch.as_str()), ("opensuse-leap", "15.6", "x86_64"));
        assert!(system("debian-12").is_none());
    }
}
