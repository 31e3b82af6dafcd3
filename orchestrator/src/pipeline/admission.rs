//! Hosts that enrol themselves, with a token: making one, taking it back, and letting in who comes with it.
//!
//! A token is used once, and yet an answer may be lost: the first key that presents its secret is bound to it in the transaction that
//! enrols the host, and that key alone is given the same answer again, until the token's time is over.

use std::{fs, io, net::IpAddr, sync::PoisonError};

use jiff::{SignedDuration, Timestamp};
use patchlab_protocol::{
    EnrolmentToken, PublicKey,
    admission::{Admission, Application, Denial},
    enrolment::is_host_name,
    limits,
    token::Secret,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{EnrolmentTerms, Pipeline, PipelineError, enrolment::bad_host_name, senders};
use crate::{
    audit::Event,
    enrol::{HostTerms, Material, agent_toml},
    place::{PlaceError, write_private},
    store::{NewToken, StoreError, TokenRow, TokenState},
};

/// A token to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The host's name.
    pub host: String,
    /// What is decided about it.
    pub terms: HostTerms,
    /// Seconds that the token is valid.
    pub valid_s: u64,
}

/// A token that was made. It is shown this once.
#[derive(Debug, Serialize, Deserialize)]
pub struct TokenMade {
    /// The host's name.
    pub host: String,
    /// The line to carry to it.
    pub token: String,
    /// Its last moment.
    pub not_after: Timestamp,
}

/// What becomes of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// The host is enrolled.
    Admit,
    /// It was, with this very key: it gets the same answer.
    Again,
    /// It is not.
    Deny(Denial),
}

/// Decides about an application by the token of its secret. `enrolled` says whether a host of that name is there. Pure.
fn decide(token: &TokenRow, host: &str, key: &PublicKey, enrolled: bool, now: Timestamp) -> Decision {
    let bound = token.public_key.as_ref();
    match token.state {
        // Whoever has a secret and not the name has seen a part of a token, and is told no more than who has nothing.
        _ if token.host != host => Decision::Deny(Denial::TokenUnknown),
        TokenState::Used if bound != Some(key) => Decision::Deny(Denial::TokenUsed),
        TokenState::Revoked => Decision::Deny(Denial::TokenRevoked),
        _ if token.not_after < now => Decision::Deny(Denial::TokenExpired),
        TokenState::Used => Decision::Again,
        TokenState::Open if enrolled => Decision::Deny(Denial::AlreadyEnrolled),
        TokenState::Open => Decision::Admit,
    }
}

impl Pipeline {
    /// Makes a token for a host that is to come.
    ///
    /// # Errors
    /// When the host could not be enrolled on these terms, is enrolled, or has a token.
    pub fn create_token(&self, request: &TokenRequest, actor: &str) -> Result<TokenMade, PipelineError> {
        let TokenRequest { host, terms, valid_s } = request;
        if !is_host_name(host) {
            return Err(bad_host_name(host));
        }
        let valid = i64::try_from(*valid_s).map_or(SignedDuration::MAX, SignedDuration::from_secs);
        if !(limits::TOKEN_VALID_LEAST..=limits::TOKEN_VALID).contains(&valid) {
            let reason = "a token is valid for 1 minute at least and 30 days at most: choose another --valid";
            return Err(PipelineError::Input(reason.into()));
        }
        let server = self.terms();
        // What could not be written when the host comes is found now, while who can mend it is here.
        terms.enrolment(host, &server, &Material::generate(host)?)?;
        let secret = Secret::generate()?;
        let now = Timestamp::now();
        let token = EnrolmentToken {
            host: host.clone(),
            server: terms.seen("enrolment", self.enrolment)?,
            pin: self.pin,
            root: server.root_digest,
            secret,
            not_after: Timestamp::from_second((now + valid).as_second()).unwrap_or(now),
        };
        let kept = NewToken {
            host,
            secret: token.secret.digest(),
            root: token.root,
            terms,
            made_by: actor,
            not_after: token.not_after,
        };
        let detail = json!({ "terms": terms, "not_after": token.not_after, "server": token.server });
        self.store.keep_token(&kept, &Event { at: now, ..Event::new("token-created", host, detail).by(actor) })?;
        self.forget_admissions();
        Ok(TokenMade { host: host.clone(), token: token.to_string(), not_after: token.not_after })
    }

    /// Takes the open token of a host back.
    ///
    /// # Errors
    /// When it has none.
    pub fn revoke_token(&self, host: &str, actor: &str) -> Result<(), PipelineError> {
        let _turn = self.admitting.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.store.revoke_token(host, &Event::new("token-revoked", host, json!({})).by(actor))?)
    }

    /// Lets a host in that asks with its token, from an address.
    ///
    /// # Errors
    /// By name. What the server could not do stands in its log.
    pub fn admit(&self, application: &Application, from: IpAddr) -> Result<Admission, Denial> {
        // One at a time: two keys with one secret are told apart by who came first.
        let _turn = self.admitting.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget_admissions();
        match self.consider(application, from) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(host = application.host, %from, %error, "a host could not be enrolled");
                Err(Denial::ServerFailed)
            }
        }
    }

    fn consider(&self, application: &Application, from: IpAddr) -> Result<Result<Admission, Denial>, PipelineError> {
        let Application { host, key, .. } = application;
        let Some(token) = self.store.token(&application.secret.digest())? else {
            return Ok(Err(Denial::TokenUnknown));
        };
        let enrolled = match self.store.host(host) {
            Ok(_) => true,
            Err(StoreError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        let denial = match decide(&token, host, key, enrolled, Timestamp::now()) {
            Decision::Admit => return self.enrol_by(&token, application, from).map(Ok),
            Decision::Again => match self.given_before(host)? {
                Some(admission) => return Ok(Ok(admission)),
                None => Denial::AlreadyEnrolled,
            },
            Decision::Deny(denial) => denial,
        };
        let mut detail = json!({ "refusal": denial, "from": from, "asked_as": host, "key": key.id() });
        if denial == Denial::TokenUsed {
            detail["enrolled_key"] = json!(token.public_key.as_ref().map(PublicKey::id));
            detail["meaning"] = json!("somebody else has the token: either this one, or the one that was enrolled");
        }
        let event = Event::new("token-refused", &token.host, detail).by(key.id().to_string());
        if self.store.token_refused(token.number, denial, &event)? == 1 {
            tracing::warn!(host = token.host, %from, key = %key.id(), %denial, "an enrolment was refused");
        }
        Ok(Err(denial))
    }

    /// Enrols the host of an open token. Its files come first: a host that is in the store has credentials, and its answer, whatever
    /// happens to this process.
    fn enrol_by(&self, token: &TokenRow, application: &Application, from: IpAddr) -> Result<Admission, PipelineError> {
        let name = &token.host;
        let standing = self.authority.standing();
        // The root that the token names; if another is in force by now, the host is brought to it like every host.
        let root = standing.roots().find(|root| root.digest == token.root);
        let root = root.ok_or_else(|| StoreError::NotFound { what: "root document", name: token.root.to_string() })?;
        let server = EnrolmentTerms { root: root.envelope.clone(), root_digest: root.digest, ..self.terms() };
        let material = Material::generate(name)?;
        let agent = token.terms.enrolment(name, &server, &material)?;
        let host = token.terms.host(name, &server, &material, application.key.clone())?;
        let agent_toml = agent_toml(&agent).map_err(|error| PipelineError::Unwritable(error.to_string()))?;
        let admission = Admission { agent_toml, root: server.root };
        let bytes = serde_json::to_vec(&admission).map_err(|error| PipelineError::Unwritable(error.to_string()))?;
        write_private(&self.data.admission(name), &bytes)?;
        material.credentials.write(&self.data.credentials(name))?;
        let key = application.key.id();
        let said = json!({ "from": from, "key": key, "agent": application.agent, "updaters": application.updaters });
        let used = Event::new("token-used", name, said).by(key.to_string());
        let detail = json!({
            "address": host.address, "site": host.site, "engine_id": host.engine_id, "key": key, "token": token.number,
            "made_by": token.made_by,
        });
        self.store.admit(token.number, &host, &used, &Event::new("host-enrolled", name, detail).by(key.to_string()))?;
        // It is enrolled now, and gets its answer whatever becomes of these; a server that starts again sees to both.
        match senders(&self.store, &self.data) {
            Ok(senders) => self.sink.set_senders(senders),
            Err(error) => tracing::error!(%error, host = name, "its informs are not heard until the next enrolment"),
        }
        self.authority.told();
        Ok(admission)
    }

    /// The answer that a host was given, where it is still kept.
    fn given_before(&self, host: &str) -> Result<Option<Admission>, PipelineError> {
        let path = self.data.admission(host);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PlaceError::io("read", &path)(error).into()),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| PipelineError::Unwritable(error.to_string()))
    }

    /// Forgets the answer that a host was given: its keys are others from now on.
    pub(super) fn forget_admission(&self, host: &str) -> Result<(), PipelineError> {
        let path = self.data.admission(host);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PlaceError::io("remove", &path)(error).into()),
            _ => Ok(()),
        }
    }

    /// Forgets the answers of tokens whose time is over. What cannot be forgotten now is tried again by the next enrolment.
    pub fn forget_admissions(&self) {
        let now = Timestamp::now();
        let forgotten = || -> Result<(), PipelineError> {
            let kept = match fs::read_dir(self.data.admissions()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                kept => kept.map_err(PlaceError::io("list", &self.data.admissions()))?,
            };
            let tokens = self.store.tokens()?;
            let lives = |host: &str| tokens.iter().any(|token| token.host == host && token.not_after >= now);
            for file in kept.flatten() {
                let name = file.file_name();
                let host = name.to_str().and_then(|name| name.strip_suffix(".json"));
                if let Some(host) = host.filter(|host| !lives(host)) {
                    self.forget_admission(host)?;
                }
            }
            Ok(())
        };
        if let Err(error) = forgotten() {
            tracing::warn!(%error, "answers of enrolments that are over are still kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use patchlab_protocol::{Digest, SigningKey, enrolment::Scripts};
    use rstest::rstest;

    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn key(seed: u8) -> PublicKey {
        SigningKey::from_seed(&[seed; 32]).public()
    }

    fn token(state: TokenState) -> TokenRow {
        TokenRow {
            number: 1,
            host: "web-1".into(),
            root: Digest::of("root"),
            terms: HostTerms {
                site: "main".into(),
                address: "192.0.2.7:161".parse().unwrap(),
                member: None,
                listen: None,
                state_dir: "/var/lib/patchlab-agent".into(),
                ledger_dir: None,
                scripts: Scripts::default(),
                tags: Default::default(),
            },
            made_by: "local".into(),
            made_at: "2026-11-30T12:00:00Z".into(),
            not_after: time("2026-11-30T13:00:00Z"),
            state,
            public_key: (state == TokenState::Used).then(|| key(1)),
            refusals: BTreeMap::new(),
        }
    }

    const IN_TIME: &str = "2026-11-30T13:00:00Z";
    const LATE: &str = "2026-11-30T13:00:01Z";
    const NEW: bool = false;
    const THERE: bool = true;

    #[rstest]
    #[case(TokenState::Open, "web-1", 1, NEW, IN_TIME, Decision::Admit)]
    #[case(TokenState::Open, "web-1", 1, NEW, LATE, Decision::Deny(Denial::TokenExpired))]
    #[case(TokenState::Open, "web-1", 1, THERE, IN_TIME, Decision::Deny(Denial::AlreadyEnrolled))]
    #[case(TokenState::Open, "web-2", 1, NEW, IN_TIME, Decision::Deny(Denial::TokenUnknown))]
    #[case(TokenState::Used, "web-1", 1, THERE, IN_TIME, Decision::Again)]
    #[case(TokenState::Used, "web-1", 1, THERE, LATE, Decision::Deny(Denial::TokenExpired))]
    // Somebody else has the token, however late he comes.
    #[case(TokenState::Used, "web-1", 2, THERE, IN_TIME, Decision::Deny(Denial::TokenUsed))]
    #[case(TokenState::Used, "web-1", 2, THERE, LATE, Decision::Deny(Denial::TokenUsed))]
    #[case(TokenState::Used, "web-2", 1, NEW, IN_TIME, Decision::Deny(Denial::TokenUnknown))]
    #[case(TokenState::Revoked, "web-1", 1, NEW, IN_TIME, Decision::Deny(Denial::TokenRevoked))]
    #[case(TokenState::Revoked, "web-1", 1, NEW, LATE, Decision::Deny(Denial::TokenRevoked))]
    #[case(TokenState::Revoked, "web-2", 1, NEW, IN_TIME, Decision::Deny(Denial::TokenUnknown))]
    fn an_application_is_decided_by_its_token(
        #[case] state: TokenState,
        #[case] host: &str,
        #[case] seed: u8,
        #[case] enrolled: bool,
        #[case] now: &str,
        #[case] expected: Decision,
    ) {
        assert_eq!(decide(&token(state), host, &key(seed), enrolled, time(now)), expected);
    }
}
