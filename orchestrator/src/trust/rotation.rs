//! The rotation of the root: what the next root document changes, whose signatures it still lacks, and when the one in force must have
//! been replaced. Pure.
//!
//! Whether a successor counts is [`patchlab_protocol::trust::successor`]'s to say, at the server and at every host alike.

use jiff::{SignedDuration, Timestamp};
use patchlab_protocol::{
    Audience, Envelope, KeyId, Role,
    document::{Root, RootKey, Scheme},
};
use serde::{Deserialize, Serialize};

use super::key::PublicFile;

/// How long before its expiry a root is warned about: people must meet, and hosts that are away must come back.
pub const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What the next root changes.
#[derive(Debug, Clone)]
pub struct Changes {
    /// Keys to list, with who holds them.
    pub add: Vec<(String, PublicFile)>,
    /// Keys to list no more.
    pub remove: Vec<KeyId>,
    /// How many signatures a role needs.
    pub thresholds: Vec<(Role, u32)>,
    /// No apply is allowed under it after that.
    pub expires: Timestamp,
}

/// The next root cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NextRootError {
    /// A key that is not there cannot go.
    #[error("key {key} is not in root {version}; it lists {}", listed(.there))]
    NotListed {
        /// The key.
        key: String,
        /// The root's version.
        version: u32,
        /// Those that are.
        there: Vec<KeyId>,
    },
    /// A key that is there cannot come.
    #[error("key {key} is in the root already, as {holder}'s: a key has one role")]
    Listed {
        /// The key.
        key: KeyId,
        /// Who holds it.
        holder: String,
    },
    /// A key that counts elsewhere.
    #[error("{holder}'s key is for the lab: a production root lists none")]
    Lab {
        /// Who holds it.
        holder: String,
    },
    /// A key that no root lists.
    #[error("{holder}'s key seals baselines: no root document lists such keys")]
    Keeper {
        /// Who holds it.
        holder: String,
    },
    /// Nobody could sign.
    #[error("{needed} signatures of role {role} would be needed, and it would list {keys} keys for it", role = name(*role))]
    Threshold {
        /// The role.
        role: Role,
        /// Signatures needed.
        needed: usize,
        /// Keys that there would be.
        keys: usize,
    },
}

fn listed(keys: &[KeyId]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A role by its name.
pub fn name(role: Role) -> String {
    serde_json::to_value(role).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The root that follows `current`.
///
/// # Errors
/// A key that cannot come or go, or a role that nobody could sign for any more.
pub fn next(current: &Root, changes: &Changes) -> Result<Root, NextRootError> {
    let mut root = Root { version: current.version.saturating_add(1), expires: changes.expires, ..current.clone() };
    for key in &changes.remove {
        let before = root.keys.len();
        root.keys.retain(|there| there.public.id() != *key);
        if root.keys.len() == before {
            let there = current.keys.iter().map(|key| key.public.id()).collect();
            return Err(NextRootError::NotListed { key: key.to_string(), version: current.version, there });
        }
    }
    for (holder, file) in &changes.add {
        let key = file.public.id();
        let holder = holder.clone();
        match root.keys.iter().find(|there| there.public == file.public) {
            Some(there) => return Err(NextRootError::Listed { key, holder: there.holder.clone() }),
            None if file.audience != Audience::Production => return Err(NextRootError::Lab { holder }),
            None if file.role == Role::Keeper => return Err(NextRootError::Keeper { holder }),
            None => root.keys.push(RootKey {
                holder,
                roles: vec![file.role],
                audience: file.audience,
                scheme: Scheme::Ed25519,
                public: file.public.clone(),
            }),
        }
    }
    root.thresholds.extend(changes.thresholds.iter().copied());
    // A role that nobody has any more is a decision; one that somebody has and cannot reach is a mistake. Roots must go on.
    for role in [Role::Root, Role::Drafter, Role::Releaser, Role::Approver, Role::Activator, Role::Operator] {
        let (needed, keys) = (root.threshold(role), root.keys(role).count());
        if needed > keys && (keys > 0 || role == Role::Root) {
            return Err(NextRootError::Threshold { role, needed, keys });
        }
    }
    Ok(root)
}

/// Signatures that a root document has of those it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signatures {
    /// Of whose keys: `root 1`, `its own`.
    pub of: String,
    /// How many are needed.
    pub needed: usize,
    /// Those that verify.
    pub by: Vec<KeyId>,
}

impl Signatures {
    /// Whether that is enough.
    pub fn enough(&self) -> bool {
        self.by.len() >= self.needed
    }
}

impl std::fmt::Display for Signatures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} signatures by root keys of {}", self.by.len(), self.needed, self.of)
    }
}

/// The signatures on a root document: of the root before it, when that is known, and of its own.
pub fn signatures(before: Option<&Root>, root: &Root, envelope: &Envelope) -> Vec<Signatures> {
    let of = |keys: &Root, of: String| Signatures {
        of,
        needed: keys.threshold(Role::Root),
        by: envelope.signers(keys.keys(Role::Root)),
    };
    let before = before.map(|before| of(before, format!("root {}", before.version)));
    before.into_iter().chain([of(root, "its own".into())]).collect()
}

/// How far a root is from its expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expiry {
    /// Far enough.
    Ahead {
        /// Days until then.
        days: i64,
    },
    /// Near: it should be replaced now.
    Near {
        /// Days until then.
        days: i64,
    },
    /// It is past: hosts refuse every apply.
    Past,
}

/// How far a root is from its expiry.
pub fn expiry(expires: Timestamp, now: Timestamp) -> Expiry {
    let left = expires.duration_since(now);
    let days = left.as_hours() / 24;
    match left {
        _ if now > expires => Expiry::Past,
        left if left <= WARN_BEFORE => Expiry::Near { days },
        _ => Expiry::Ahead { days },
    }
}

impl Expiry {
    /// What people must know and do; `None` while there is time.
    pub fn warning(self, version: u32) -> Option<String> {
        let remedy = "patchlab root next --out FILE, root sign, root import";
        match self {
            Self::Ahead { .. } => None,
            Self::Near { days } => {
                Some(format!("root {version} expires in {days} days, and then no host applies anything: {remedy}"))
            }
            Self::Past => {
                Some(format!("root {version} has expired: no host applies anything until it is replaced: {remedy}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;
    use patchlab_protocol::{SigningKey, trust::successor};

    use super::*;
    use crate::gate::tests::{key, root};

    fn file(role: Role, key: &SigningKey) -> PublicFile {
        PublicFile { role, audience: Audience::Production, public: key.public() }
    }

    fn changes() -> Changes {
        Changes { add: vec![], remove: vec![], thresholds: vec![], expires: Timestamp::now() }
    }

    #[test]
    fn a_root_is_followed_by_the_very_next_version_which_hosts_take() {
        let (drafter, root_key) = (SigningKey::from_seed(&[91; 32]), SigningKey::from_seed(&[92; 32]));
        let made = next(
            &root(),
            &Changes {
                add: vec![("d".into(), file(Role::Drafter, &drafter)), ("r".into(), file(Role::Root, &root_key))],
                remove: vec![key(Role::Drafter).public().id()],
                thresholds: vec![(Role::Root, 2)],
                ..changes()
            },
        )
        .unwrap();
        assert_eq!((made.version, made.threshold(Role::Root)), (2, 2));
        assert_eq!(made.keys(Role::Drafter).collect::<Vec<_>>(), [&drafter.public()]);
        // One signature after the other, until both thresholds are met.
        let mut envelope = Envelope::unsigned(made.clone());
        let lacking = |envelope: &Envelope| {
            signatures(Some(&root()), &made, envelope).into_iter().filter(|one| !one.enough()).count()
        };
        for (signer, lacks) in [(&root_key, 2), (&key(Role::Root), 0)] {
            assert!(successor(&root(), &envelope).is_err());
            envelope.add_signature(signer);
            assert_eq!(lacking(&envelope), lacks);
        }
        assert_eq!(successor(&root(), &envelope).unwrap(), made);
    }

    #[test]
    fn keys_that_cannot_come_or_go_and_thresholds_that_nobody_reaches_are_told() {
        let stranger = SigningKey::from_seed(&[91; 32]);
        let with = |change: fn(&mut Changes, &SigningKey)| {
            let mut changes = changes();
            change(&mut changes, &stranger);
            next(&root(), &changes).unwrap_err()
        };
        let error = with(|c, key| c.remove.push(key.public().id()));
        assert!(matches!(error, NextRootError::NotListed { .. }), "{error}");
        let error = with(|c, _| c.add.push(("x".into(), file(Role::Operator, &key(Role::Drafter)))));
        assert!(matches!(error, NextRootError::Listed { .. }), "{error}");
        let error =
            with(|c, key| c.add.push(("x".into(), PublicFile { audience: Audience::Lab, ..file(Role::Root, key) })));
        assert!(matches!(error, NextRootError::Lab { .. }), "{error}");
        let error = with(|c, key| c.add.push(("x".into(), file(Role::Keeper, key))));
        assert!(matches!(error, NextRootError::Keeper { .. }), "{error}");
        let error = with(|c, _| c.thresholds.push((Role::Approver, 2)));
        assert!(matches!(error, NextRootError::Threshold { role: Role::Approver, needed: 2, keys: 1 }), "{error}");
        let error = with(|c, _| c.remove.push(key(Role::Root).public().id()));
        assert!(
            matches!(error, NextRootError::Threshold { role: Role::Root, .. }),
            "a root without root keys ends: {error}"
        );
    }

    #[test]
    fn an_expiry_is_warned_about_a_month_before() {
        let now: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
        let after = |hours: i64| now.checked_add(hours.hours()).unwrap();
        assert_eq!(expiry(after(31 * 24), now), Expiry::Ahead { days: 31 });
        assert_eq!(expiry(after(30 * 24), now), Expiry::Near { days: 30 });
        assert_eq!(expiry(after(1), now), Expiry::Near { days: 0 });
        assert_eq!(expiry(after(-1), now), Expiry::Past);
        assert!(Expiry::Ahead { days: 31 }.warning(1).is_none());
        assert!(Expiry::Near { days: 3 }.warning(7).unwrap().contains("root 7 expires in 3 days"));
        assert!(Expiry::Past.warning(7).unwrap().contains("has expired"));
    }
}
