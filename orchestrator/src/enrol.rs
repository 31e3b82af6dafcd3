//! How hosts are enrolled: what is made anew for each, so that no two share a secret ([`Material`]; the lab makes the same for every
//! clone), what is decided about it ([`HostTerms`]), and the [`door`] at which one asks by itself, with a token.
//!
//! A host's enrolment key is none of this: it is made where it is used, on the host, or by whoever carries a folder there.

pub mod door;
pub mod identity;
mod terms;

pub use terms::{HostTerms, TermsError, agent_toml};

use patchlab_protocol::{
    enrolment::{EngineId, SnmpUser},
    key::KeyError,
};

use crate::deploy::Credentials;

/// A host's fresh secrets.
#[derive(Debug)]
pub struct Material {
    /// Its agent's SNMP engine.
    pub engine_id: EngineId,
    /// May read.
    pub monitor: SnmpUser,
    /// Shared with the manager.
    pub credentials: Credentials,
}

impl Material {
    /// Fresh secrets for the host of that name.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate(host: &str) -> Result<Self, KeyError> {
        Ok(Self {
            engine_id: EngineId::generate()?,
            monitor: user("monitor")?,
            credentials: Credentials {
                deployer: user("deployer")?,
                inform: user(&inform_name(host)?)?,
                key_administrator: Some(user("keys")?),
                next: None,
            },
        })
    }
}

/// Informs are told apart by their user, so its name is unique among hosts; user names have at most 32 bytes.
fn inform_name(host: &str) -> Result<String, KeyError> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| KeyError::Entropy(error.to_string()))?;
    let host: String = host.chars().take(16).collect();
    Ok(format!("inform-{host}-{}", hex::encode(random)))
}

/// A user with fresh passphrases of 128 bits each: nobody types them.
///
/// # Errors
/// When the operating system gives no random bytes.
pub fn user(name: &str) -> Result<SnmpUser, KeyError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| KeyError::Entropy(error.to_string()))?;
    Ok(SnmpUser { name: name.to_owned(), auth: hex::encode(&random[..16]), privacy: hex::encode(&random[16..]) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use patchlab_protocol::usm::localized;

    use super::*;

    #[test]
    fn no_two_enrolments_share_a_key_or_a_passphrase() {
        let mut words = BTreeSet::new();
        let mut keys = BTreeSet::new();
        let enrolments = ["web-1", "web-1", "web-2"].map(|host| Material::generate(host).unwrap());
        for Material { engine_id, monitor, credentials } in &enrolments {
            assert!(words.insert(engine_id.to_string()), "engine {engine_id}");
            assert!(words.insert(credentials.inform.name.clone()), "user {}", credentials.inform.name);
            let users = [monitor, &credentials.deployer, &credentials.inform];
            for user in users.into_iter().chain(&credentials.key_administrator) {
                for passphrase in [&user.auth, &user.privacy] {
                    assert!(passphrase.len() >= 32 && words.insert(passphrase.clone()), "{} of {engine_id}", user.name);
                    assert!(keys.insert(localized(passphrase, engine_id)), "{} of {engine_id}", user.name);
                }
            }
        }
        // Four users with two passphrases each, an engine and a name.
        assert_eq!((words.len(), keys.len()), (3 * (4 * 2 + 2), 3 * 4 * 2));
    }
}
