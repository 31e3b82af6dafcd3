//! How a host comes to be enrolled by a token, once: its key is made here and never leaves, and what it is told it believes from one
//! server alone, the one whose key the token pins.
//!
//! Whatever the moment in which this is killed, it can be run again with the same token: the key is on the disk before anybody hears of
//! it, the server gives the same answer to the same key, and `agent.toml`, without which nothing runs, is written last and whole.

mod door;
mod folder;
mod pinned;

use std::path::{Path, PathBuf};

use patchlab_check::written::{self, WrittenError};
use patchlab_protocol::{
    Envelope,
    admission::{Admission, Application},
    enrolment::{BadEnrolment, Enrolment, FILE_NAME, KEY_FILE, ROOT_FILE},
    key::KeyError,
    token::{BadToken, EnrolmentToken},
    trust::{RootError, pinned_root},
};

pub use door::AskError;
use folder::Folder;
pub use folder::FolderError;

use crate::updaters;

/// The host is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// What was given is no token.
    #[error(transparent)]
    Token(#[from] BadToken),
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The host's key.
    #[error("the host's key: {0}")]
    Key(#[from] KeyError),
    /// The server.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The server answered something that the token did not say.
    #[error("the server's answer is not what the token says, so nothing was written: {0}")]
    Answer(#[from] NotAsSaid),
}

/// An answer that is not believed.
#[derive(Debug, thiserror::Error)]
pub enum NotAsSaid {
    /// Its configuration cannot be read.
    #[error(transparent)]
    Written(#[from] WrittenError),
    /// Its configuration says something that cannot be.
    #[error("agent.toml: {0}")]
    Enrolment(#[from] BadEnrolment),
    /// Its configuration is for another host, or names other files or another root.
    #[error("agent.toml: {key} is {found:?}, and should be {expected:?}")]
    Differs {
        /// The key in the file.
        key: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// The root document is another one, or not valid.
    #[error("root document: {0}")]
    Root(#[from] RootError),
}

/// A host that is enrolled.
#[derive(Debug)]
pub struct Enrolled {
    /// What it was given.
    pub enrolment: Enrolment,
    /// Its configuration.
    pub config: PathBuf,
    /// The name of its key.
    pub key: patchlab_protocol::KeyId,
    /// Automatic updaters that run on it by themselves.
    pub updaters: Vec<&'static str>,
}

/// Enrols this host with the server that the token names, and writes what its agent runs from into a folder.
///
/// # Errors
/// By name; whatever it is, `agent.toml` is not there then.
pub async fn enrol(token: &EnrolmentToken, dir: &Path) -> Result<Enrolled, EnrolError> {
    let folder = Folder::open(dir)?;
    let key = folder.key()?;
    let updaters = updaters::enabled(Path::new("/"));
    let application = Application {
        host: token.host.clone(),
        secret: token.secret.clone(),
        key: key.public(),
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        updaters: updaters.iter().map(|name| (*name).to_owned()).collect(),
    };
    let admission = door::ask(token, Envelope::sign(application, &key).to_bytes()).await?;
    let config = dir.join(FILE_NAME);
    let enrolment = as_said(token, &admission, &config)?;
    folder.keep(&admission)?;
    Ok(Enrolled { enrolment, config, key: key.public().id(), updaters })
}

/// The enrolment in an answer, when it is what the token said. Pure.
fn as_said(token: &EnrolmentToken, admission: &Admission, config: &Path) -> Result<Enrolment, NotAsSaid> {
    let enrolment: Enrolment = written::parse(&admission.agent_toml, config)?;
    enrolment.check()?;
    let said = [
        ("host", enrolment.host.clone(), token.host.clone()),
        ("root.digest", enrolment.root.digest.to_string(), token.root.to_string()),
        ("root.path", enrolment.root.path.display().to_string(), ROOT_FILE.to_owned()),
        ("host_key", enrolment.host_key.display().to_string(), KEY_FILE.to_owned()),
    ];
    if let Some((key, found, expected)) = said.into_iter().find(|(_, found, expected)| found != expected) {
        return Err(NotAsSaid::Differs { key, found, expected });
    }
    pinned_root(&admission.root, token.root)?;
    Ok(enrolment)
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{Digest, SigningKey, token::Secret};

    use super::*;

    const AGENT_TOML: &str = include_str!("../etc/agent.toml");

    /// A root document as people make it, and the digest that a token says.
    fn root() -> Envelope {
        let bytes = include_bytes!("../fuzz/corpus/documents/root");
        Envelope::from_bytes(bytes).unwrap()
    }

    fn token(root: Digest) -> EnrolmentToken {
        EnrolmentToken {
            host: "web-1".into(),
            server: "127.0.0.1:1".parse().unwrap(),
            pin: Digest::of("key"),
            root,
            secret: Secret::generate().unwrap(),
            not_after: jiff::Timestamp::now(),
        }
    }

    fn admission(root: &Envelope) -> Admission {
        let zeros = "0".repeat(64);
        let agent_toml = AGENT_TOML.replace(&zeros, &root.digest().to_string());
        Admission { agent_toml, root: root.clone() }
    }

    fn answer(admission: &Admission, said: Digest) -> Result<Enrolment, NotAsSaid> {
        as_said(&token(said), admission, Path::new("agent.toml"))
    }

    #[test]
    fn an_answer_is_believed_when_it_is_what_the_token_said() {
        let root = root();
        assert_eq!(answer(&admission(&root), root.digest()).unwrap().host, "web-1");
    }

    #[test]
    fn every_other_answer_is_named() {
        let root = root();
        let good = admission(&root);
        let with = |from: &str, to: &str| {
            assert!(good.agent_toml.contains(from), "{from}");
            Admission { agent_toml: good.agent_toml.replacen(from, to, 1), root: root.clone() }
        };
        for (bad, key) in [
            (with("host = \"web-1\"", "host = \"web-2\""), "host"),
            (with("path = \"root.json\"", "path = \"/tmp/root.json\""), "root.path"),
            (with("host_key = \"host.pem\"", "host_key = \"/tmp/host.pem\""), "host_key"),
            (with(&root.digest().to_string(), &"1".repeat(64)), "root.digest"),
        ] {
            let error = answer(&bad, root.digest()).unwrap_err();
            assert!(matches!(&error, NotAsSaid::Differs { key: named, .. } if *named == key), "{key}: {error}");
        }
        let error = answer(&with("name = \"deployer\"", "name = \"monitor\""), root.digest()).unwrap_err();
        assert!(matches!(error, NotAsSaid::Enrolment(_)), "{error}");
        let error = answer(&with("host = ", "hots = "), root.digest()).unwrap_err();
        assert!(matches!(error, NotAsSaid::Written(_)), "{error}");
    }

    #[test]
    fn a_root_that_is_not_the_one_of_the_token_is_refused_whatever_the_configuration_says() {
        let root = root();
        let mut other = root.clone();
        other.add_signature(&SigningKey::from_seed(&[3; 32]));
        // More signatures make no other document.
        assert!(answer(&Admission { root: other, ..admission(&root) }, root.digest()).is_ok());
        let other = Envelope::unsigned(Application {
            host: "web-1".into(),
            secret: Secret::generate().unwrap(),
            key: SigningKey::from_seed(&[3; 32]).public(),
            agent: String::new(),
            updaters: vec![],
        });
        let error = answer(&Admission { root: other, ..admission(&root) }, root.digest()).unwrap_err();
        assert!(matches!(error, NotAsSaid::Root(_)), "{error}");
    }
}
