//! A libvirt that runs by itself and lends machines: what it must be, and what it is told beside.
//!
//! It starts the emulators, so they are in its namespaces, not in the worker's. Three things make them the lab's machines all the same: they
//! run as the lab's user, who may read baselines and nothing more; their one network is a socket in the worker's folder ([`super::panel`]);
//! and they end with the worker's connection.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use roxmltree::Document;
use virt::{connect::Connect, domain::Domain, sys};

use super::{LabError, Versions, libvirt::version, start_events};

/// Seconds between two questions whether the other side is there, and how many may go without an answer.
const KEEP_ALIVE: (i32, u32) = (5, 4);

/// How long another libvirt may take to answer before it counts as gone.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Those that were asked by this process and have not answered yet. Each holds a thread; nobody else waits for it before it has.
static SILENT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

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

/// Asks it something in a thread of its own: libvirt's client waits without a limit until a connection stands. Of one that does not
/// answer in time, the thread stays until it does, or until the program ends.
///
/// # Errors
/// It does not answer within [`ANSWER_TIMEOUT`], or what it answers.
fn asked<T: Send + 'static>(
    uri: &str,
    question: impl FnOnce(&str) -> Result<T, LabError> + Send + 'static,
) -> Result<T, LabError> {
    asked_within(ANSWER_TIMEOUT, uri, question)
}

/// The same within a limit of the caller's, whose questions may fail in ways of their own.
///
/// # Errors
/// It does not answer in time, or what it answers.
pub(crate) fn asked_within<T: Send + 'static, E: From<LabError> + Send + 'static>(
    timeout: Duration,
    uri: &str,
    question: impl FnOnce(&str) -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let silent = || SILENT.lock().unwrap_or_else(PoisonError::into_inner);
    let unanswered = || LabError::Silent { uri: uri.to_owned(), timeout };
    let broken =
        |reason: String| LabError::Libvirt { action: "start a thread that asks", subject: uri.to_owned(), reason };
    if silent().contains(uri) {
        return Err(unanswered().into());
    }
    let (tell, told) = mpsc::channel();
    let whom = uri.to_owned();
    let ask = move || {
        // Nobody listens any more when it was too slow.
        drop(tell.send(question(&whom)));
        silent().remove(&whom);
    };
    std::thread::Builder::new().name("libvirt-ask".into()).spawn(ask).map_err(|error| broken(error.to_string()))?;
    match told.recv_timeout(timeout) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Disconnected) => Err(broken("it broke".into()).into()),
        Err(RecvTimeoutError::Timeout) => {
            let mut silent = silent();
            // It may have answered just now, and then forgets nothing any more.
            told.try_recv().unwrap_or_else(|_| {
                silent.insert(uri.to_owned());
                Err(unanswered().into())
            })
        }
    }
}

/// Opens it; it must be one whose machines the lab can have.
pub(super) fn open(uri: &str) -> Result<Connect, LabError> {
    asked(uri, connected)
}

fn connected(uri: &str) -> Result<Connect, LabError> {
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
    if let Elsewhere::There { here } = elsewhere(&there) {
        return Err(unfit(format!(
            "its machines are on {there}, and the lab's files on {here}: run the lab there, with `patchlab baseline export` and `import`"
        )));
    }
    // A connection that cannot ask finds out when it next says something.
    let _ = connect.set_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1);
    Ok(connect)
}

/// Where the machines of a libvirt are, by what it calls its host.
pub(crate) enum Elsewhere {
    /// On this host.
    Here,
    /// On another.
    There {
        /// What this one is called.
        here: String,
    },
}

/// Whether a host of that name is another than this one. Names count without their domain, which one side may know and the other not.
pub(crate) fn elsewhere(there: &str) -> Elsewhere {
    let here = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let short = |host: &str| host.split('.').next().unwrap_or(host).to_owned();
    if short(there) == short(&here) { Elsewhere::Here } else { Elsewhere::There { here } }
}

/// What it is, when the lab can have machines of it.
///
/// # Errors
/// It does not open, or its machines are of no use to the lab.
pub(crate) fn look(uri: &str) -> Result<Versions, LabError> {
    asked(uri, |uri| versions(&connected(uri)?, uri))
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

/// Whether it has machines whose names begin so.
///
/// # Errors
/// It does not say: it may.
pub(crate) fn has(uri: &str, prefix: &str) -> Result<bool, LabError> {
    let prefix = prefix.to_owned();
    asked(uri, move |uri| Ok(!machines(uri, &prefix)?.is_empty()))
}

/// Ends all machines there whose names begin so.
///
/// # Errors
/// It does not open or answer, or one of them does not end.
pub(crate) fn end_all(uri: &str, prefix: &str) -> Result<(), LabError> {
    let prefix = prefix.to_owned();
    asked(uri, move |uri| {
        for machine in machines(uri, &prefix)? {
            match machine.destroy() {
                // It ended by itself in between.
                Err(_) if !machine.is_active().unwrap_or(false) => {}
                other => other.map_err(refused("end a machine at", uri))?,
            }
        }
        Ok(())
    })
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
        assert!(has(uri, "patchlab-w-1-").unwrap());
        end_all(uri, "patchlab-w-1-").unwrap();
        assert_eq!(names(), ["patchlab-w-2-control", "test"]);
        assert!(!has(uri, "patchlab-w-1-").unwrap() && has(uri, "patchlab-w-2-").unwrap());
        end_all(uri, "patchlab-w-2-").unwrap();
        // Nobody knows what one has that does not answer.
        let gone = "test:///no/such/file.xml";
        assert!(has(gone, "patchlab-w-1-").is_err() && end_all(gone, "patchlab-w-1-").is_err());
    }
}
