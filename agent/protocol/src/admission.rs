//! What a host and the server's enrolment door say to each other, once, over TLS: the host asks to be let in ([`Application`]), signed by
//! its new enrolment key; the door lets it in ([`Admission`]), or says by name why not ([`Denied`]).
//!
//! One POST to [`PATH`]. The application is an envelope like every document's, so that the key that is enrolled is one whose private half
//! the host has. The secret in it is worth nothing to anybody but the holder of the door's key, to whom alone it is sent.

use serde::{Deserialize, Serialize};

use crate::{
    Digest, Envelope, PublicKey,
    enrolment::is_host_name,
    envelope::{EnvelopeError, Predicate, Subject},
    limits,
    token::Secret,
};

/// Where it is asked.
pub const PATH: &str = "/v1/enrolment";

/// A host asks to be enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// Its name, as in the token.
    pub host: String,
    /// The token's secret.
    pub secret: Secret,
    /// The public half of its enrolment key, which signs this.
    pub key: PublicKey,
    /// The agent's version.
    pub agent: String,
    /// Automatic updaters that run on the host by themselves, by name.
    pub updaters: Vec<String>,
}

impl Predicate for Application {
    const TYPE: &'static str = "urn:patchlab:enrolment-application:1";

    fn subjects(&self) -> Vec<Subject> {
        vec![Subject::new(self.host.clone(), Digest::of(self.key.to_string()))]
    }

    fn check(&self) -> Result<(), String> {
        let short = |word: &String| word.len() <= limits::APPLICATION_WORD_BYTES;
        if !is_host_name(&self.host) {
            return Err("its name is no host's".into());
        }
        if !short(&self.agent) || self.updaters.len() > limits::APPLICATION_UPDATERS || !self.updaters.iter().all(short)
        {
            return Err("it says more of itself than a host has to say".into());
        }
        Ok(())
    }
}

impl Application {
    /// Reads one that is signed by the very key that it asks to have enrolled.
    ///
    /// # Errors
    /// When it is none, is too large, or is not signed so.
    pub fn read(bytes: &[u8]) -> Result<Self, BadApplication> {
        if bytes.len() > limits::APPLICATION_BYTES {
            return Err(BadApplication::TooLarge);
        }
        let envelope = Envelope::from_bytes(bytes)?;
        let application: Self = envelope.statement()?.predicate;
        if envelope.signers([&application.key]).is_empty() {
            return Err(BadApplication::NotSigned);
        }
        Ok(application)
    }
}

/// Not an application.
#[derive(Debug, thiserror::Error)]
pub enum BadApplication {
    /// Larger than [`limits::APPLICATION_BYTES`].
    #[error("an application has at most {limit} bytes", limit = limits::APPLICATION_BYTES)]
    TooLarge,
    /// Not the document.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Whoever sent it does not have the key.
    #[error("the application is not signed by the key that it names")]
    NotSigned,
}

/// What an enrolled host gets.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// The content of its `agent.toml`, which holds passphrases.
    pub agent_toml: String,
    /// The root document that it pins.
    pub root: Envelope,
}

/// Why a host is not enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Denial {
    /// What came is no application, or not signed.
    BadApplication,
    /// No token with this secret is for this host. Nobody is told whether it is the secret or the name.
    TokenUnknown,
    /// Another key was enrolled with it.
    TokenUsed,
    /// Its time is over.
    TokenExpired,
    /// It was taken back.
    TokenRevoked,
    /// The host was enrolled otherwise since the token was made, or its SNMP keys have changed since it was admitted.
    AlreadyEnrolled,
    /// The server cannot do it now.
    ServerFailed,
}

impl Denial {
    /// Its name on the wire, in the audit log and on screens.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadApplication => "bad-application",
            Self::TokenUnknown => "token-unknown",
            Self::TokenUsed => "token-used",
            Self::TokenExpired => "token-expired",
            Self::TokenRevoked => "token-revoked",
            Self::AlreadyEnrolled => "already-enrolled",
            Self::ServerFailed => "server-failed",
        }
    }

    /// What it means for whoever sits at the host, and what to do.
    pub fn advice(self) -> &'static str {
        match self {
            Self::BadApplication => "the server cannot read what this agent sent: bring both to one version",
            Self::TokenUnknown => "the server knows no such token for this host: have another one made",
            Self::TokenUsed => {
                "another key was enrolled with this token: unless it was this host with a folder that is gone, somebody \
                 else has the token, and the host of that name is theirs; tell who runs the server"
            }
            Self::TokenExpired => "the token's time is over: have another one made",
            Self::TokenRevoked => "the token was taken back",
            Self::AlreadyEnrolled => "a host of that name is enrolled already, and not by this token as it stands",
            Self::ServerFailed => "the server could not do it: its log says why; try again with the same token",
        }
    }
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What the door answers instead of an [`Admission`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    /// Why.
    pub denied: Denial,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SigningKey;

    fn application(key: &SigningKey) -> Application {
        Application {
            host: "web-1".into(),
            secret: Secret::generate().unwrap(),
            key: key.public(),
            agent: "0.1.0".into(),
            updaters: vec!["unattended-upgrades".into()],
        }
    }

    #[test]
    fn an_application_is_read_when_the_key_that_it_names_signed_it() {
        let key = SigningKey::from_seed(&[1; 32]);
        let asked = application(&key);
        let read = Application::read(&Envelope::sign(asked.clone(), &key).to_bytes()).unwrap();
        assert_eq!(read, asked);
        let other = SigningKey::from_seed(&[2; 32]);
        let forged = Envelope::sign(asked.clone(), &other).to_bytes();
        assert!(matches!(Application::read(&forged), Err(BadApplication::NotSigned)));
        assert!(matches!(Application::read(&Envelope::unsigned(asked).to_bytes()), Err(BadApplication::NotSigned)));
    }

    #[test]
    fn what_says_too_much_is_refused() {
        let key = SigningKey::from_seed(&[1; 32]);
        let asked = application(&key);
        let many = vec!["x".to_owned(); limits::APPLICATION_UPDATERS + 1];
        let long = "x".repeat(limits::APPLICATION_WORD_BYTES + 1);
        for bad in [
            Application { updaters: many, ..asked.clone() },
            Application { updaters: vec![long.clone()], ..asked.clone() },
            Application { agent: long, ..asked.clone() },
            Application { host: "../web".into(), ..asked },
        ] {
            let bytes = Envelope::sign(bad, &key).to_bytes();
            assert!(matches!(Application::read(&bytes), Err(BadApplication::Envelope(_))));
        }
        let large = vec![b' '; limits::APPLICATION_BYTES + 1];
        assert!(matches!(Application::read(&large), Err(BadApplication::TooLarge)));
    }

    #[test]
    fn a_denial_is_written_by_its_name() {
        for denial in [Denial::TokenUsed, Denial::BadApplication, Denial::AlreadyEnrolled, Denial::ServerFailed] {
            assert_eq!(serde_json::to_value(denial).unwrap(), denial.name());
        }
    }
}
