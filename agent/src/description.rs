//! What the host is and does, looked at: the kind of machine, the services that systemd knows, the ports that something listens on, and what
//! the configuration says of place and purpose. Nothing is changed, what is read has limits, and what cannot be read is left out.

mod machine;
mod ports;
mod services;

use std::{fs, io::Read as _, path::Path};

use patchlab_protocol::description::{Description, JOBS, Job, Kernel, Service, Tags};

use crate::boot;

/// Looks at the system below `root`; its `jobs` take weeks to see. What cannot be asked now is as it was seen `last`.
pub fn describe(root: &Path, tags: &Tags, mut jobs: Vec<Job>, last: &[Service]) -> Description {
    let kernels = kernels(root);
    // An older manager reads no more lines than services, ports and jobs may have in all.
    jobs.truncate(JOBS - kernels.len());
    Description {
        machine: machine::kind(root).to_owned(),
        tags: tags.clone(),
        services: services::services(root, last),
        ports: ports::listening(root),
        jobs,
        kernels,
    }
}

fn kernels(root: &Path) -> Vec<Kernel> {
    let installed = boot::installed(root).inspect_err(|error| tracing::debug!(%error, "kernels"));
    Kernel::all(boot::running(root).ok().as_deref(), &installed.unwrap_or_default())
}

/// The kind of machine of the system below `root`.
pub fn machine(root: &Path) -> &'static str {
    machine::kind(root)
}

/// The beginning of a file, as text; empty when it cannot be read.
fn text(path: &Path, most: u64) -> String {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    if read.is_ok() { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() }
}
