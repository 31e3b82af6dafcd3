//! A libvirt that runs by itself and lends machines: what it must be, and what it is told beside.
//!
//! It starts the emulators, so they are in its namespaces, not in the worker's. Three things make them the lab's machines all the same: they
//! run as the lab's user, who may read baselines and nothing more; their one network is a socket in the worker's folder ([`super::panel`]);
//! and they end with the worker's connection.

use std::fmt::Write as _;

use roxmltree::Document;
use virt::{connect::Connect, domain::Domain, sys};

use super::{LabError, Versions, libvirt::version, start_events};

/// Seconds between two questions whether the other side is there, and how many may go without an answer.
const KEEP_ALIVE: (i32, u32) = (5, 4);

/// What a machine there is told of security.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Security {
    /// The user and the group that the emulator runs as.
    pub(crate) user: (u32, u32),
    /// Security models beside the one of users, by libvirt's names for them. What they allow knows nothing of the lab's files.
    pub(crate) models: Vec<String>,
}

impl Security {
    /// libvirt's description of it (<https://libvirt.org/formatdomain.html#security-label>).
    pub(crate) fn to_xml(&self) -> String {
        let (uid, gid) = self.user;
        let mut xml =
            format!("\n  <seclabel type='static' model='dac' relabel='no'><label>+{uid}:+{gid}</label></seclabel>");
        for model in &self.models {
            let _ = write!(xml, "\n  <seclabel type='none' model='{}'/>", super::domain::escape(model));
        }
        xml
    }
}

fn refused(action: &'static str, uri: &str) -> impl FnOnce(virt::error::Error) -> LabError {
    let subject = uri.to_owned();
    move |error| LabError::Libvirt { action, subject, reason: error.message().to_owned() }
}

/// Opens it; it must be one whose machines the lab can have.
pub(super) fn open(uri: &str) -> Result<Connect, LabError> {
    // What it says comes back as an error.
    virt::error::clear_error_callback();
    start_events()?;
    let connect = Connect::open(Some(uri)).map_err(|error| LabError::Libvirt {
        action: "open",
        subject: uri.to_owned(),
        reason: format!(
            "{} (does it run, and is the lab's user let in: `adduser {} libvirt`?)",
            error.message(),
            crate::worker::USER
        ),
    })?;
    let unfit = |reason: String| LabError::Libvirt { action: "use", subject: uri.to_owned(), reason };
    let kind = connect.driver_type().map_err(refused("ask for the kind of", uri))?;
    if kind != "QEMU" {
        return Err(unfit(format!("its machines are {kind}'s, and the lab's are QEMU's")));
    }
    // Its own files are all that a libvirt elsewhere could open.
    let there = connect.hostname().map_err(refused("ask for the host of", uri))?;
    let here = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if short(&there) != short(&here) {
        return Err(unfit(format!(
            "its machines are on {there}, and the lab's files on {here}: run the lab there, with `patchlab baseline export` and `import`"
        )));
    }
    // A connection that cannot ask finds out when it next says something.
    let _ = connect.set_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1);
    Ok(connect)
}

/// A host's name without its domain, which one side may know and the other not.
fn short(host: &str) -> &str {
    host.split('.').next().unwrap_or(host)
}

/// What it is, when the lab can have machines of it.
///
/// # Errors
/// It does not open, or its machines are of no use to the lab.
pub(crate) fn look(uri: &str) -> Result<Versions, LabError> {
    versions(&open(uri)?, uri)
}

pub(super) fn versions(connect: &Connect, uri: &str) -> Result<Versions, LabError> {
    Ok(Versions {
        qemu: version(connect.hyp_version().map_err(refused("ask for QEMU's version at", uri))?),
        libvirt: version(connect.lib_version().map_err(refused("ask for the version of", uri))?),
    })
}

/// What machines there are told of security: as whom this process runs, and that nothing else is to watch over them.
pub(super) fn security(connect: &Connect, uri: &str) -> Result<Security, LabError> {
    let xml = connect.capabilities().map_err(refused("ask for the capabilities of", uri))?;
    let models = models(&xml).map_err(|error| LabError::Libvirt {
        action: "understand the capabilities of",
        subject: uri.to_owned(),
        reason: error.to_string(),
    })?;
    let user = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Ok(Security { user, models })
}

/// The security models in libvirt's capabilities, without the one of users and groups.
fn models(capabilities: &str) -> Result<Vec<String>, roxmltree::Error> {
    let document = Document::parse(capabilities)?;
    let models = document.descendants().filter(|node| node.has_tag_name("secmodel")).filter_map(|secmodel| {
        let model = secmodel.children().find(|child| child.has_tag_name("model"))?;
        model.text().map(str::to_owned)
    });
    Ok(models.filter(|model| model != "dac" && model != "none").collect())
}

/// The machines whose names begin so.
fn machines(uri: &str, prefix: &str) -> Result<Vec<Domain>, LabError> {
    virt::error::clear_error_callback();
    start_events()?;
    let connect = Connect::open(Some(uri)).map_err(refused("open", uri))?;
    let all =
        connect.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE).map_err(refused("list machines at", uri))?;
    Ok(all.into_iter().filter(|domain| domain.name().is_ok_and(|name| name.starts_with(prefix))).collect())
}

/// Whether it may have machines whose names begin so: one that does not say may.
pub(crate) fn may_have(uri: &str, prefix: &str) -> bool {
    machines(uri, prefix).map_or(true, |machines| !machines.is_empty())
}

/// Ends all machines there whose names begin so.
///
/// # Errors
/// It does not open, or one of them does not end.
pub(crate) fn end_all(uri: &str, prefix: &str) -> Result<(), LabError> {
    for machine in machines(uri, prefix)? {
        match machine.destroy() {
            // It ended by itself in between.
            Err(_) if !machine.is_active().unwrap_or(false) => {}
            other => other.map_err(refused("end a machine at", uri))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_security_model_is_told_to_stand_back() {
        let capabilities = "<capabilities><host><secmodel><model>apparmor</model><doi>0</doi></secmodel>\
            <secmodel><model>dac</model><doi>0</doi></secmodel></host></capabilities>";
        let security = Security { user: (993, 992), models: models(capabilities).unwrap() };
        let xml = security.to_xml();
        assert!(xml.contains("model='dac' relabel='no'><label>+993:+992</label>"), "{xml}");
        assert!(xml.contains("<seclabel type='none' model='apparmor'/>"), "{xml}");
        assert_eq!(xml.matches("seclabel type").count(), 2);
        assert!(models("<capabilities>").is_err());
    }

    #[test]
    fn machines_end_by_how_their_names_begin_and_others_stay() {
        // The driver for tests keeps its machines as long as one of this process's connections to it is open.
        let uri = "test:///default";
        let held = Connect::open(Some(uri)).unwrap();
        for name in ["patchlab-w-1-control", "patchlab-w-2-control"] {
            let xml = format!(
                "<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os></domain>"
            );
            held.create_domain_xml(&xml, 0).unwrap();
        }
        let names = || -> Vec<String> {
            let mut names: Vec<String> =
                held.list_all_domains(0).unwrap().iter().map(|domain| domain.name().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["patchlab-w-1-control", "patchlab-w-2-control", "test"]);
        assert!(may_have(uri, "patchlab-w-1-"));
        end_all(uri, "patchlab-w-1-").unwrap();
        assert_eq!(names(), ["patchlab-w-2-control", "test"]);
        assert!(!may_have(uri, "patchlab-w-1-") && may_have(uri, "patchlab-w-2-"));
        end_all(uri, "patchlab-w-2-").unwrap();
        // Nobody knows what one has that does not answer.
        let gone = "test:///no/such/file.xml";
        assert!(may_have(gone, "patchlab-w-1-") && end_all(gone, "patchlab-w-1-").is_err());
    }
}
