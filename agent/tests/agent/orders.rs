//! A signing authority of the test, and the documents it signs.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use patchlab_protocol::{
    Audience, Boots, Digest, Envelope, Role, SigningKey,
    document::{
        Action, Activation, Approval, BaselineProof, Class, Growth, Kind, OnFailure, Order, PackageFile, Proof,
        Release, Replaced, Rollback, RollbackClass, RollbackFiles, Root, RootKey, Scheme, Severity, TestResult,
    },
};

/// Keys for every role, and the root that lists them.
pub struct Authority {
    pub keys: BTreeMap<Role, SigningKey>,
    pub root: Envelope,
    /// What releases say that their baselines boot.
    pub boots: Option<Boots>,
}

pub fn hours(hours: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(hours)
}

impl Authority {
    pub fn new() -> Self {
        Self::of(Audience::Production)
    }

    pub fn of(audience: Audience) -> Self {
        let roles = [Role::Root, Role::Drafter, Role::Releaser, Role::Approver, Role::Activator, Role::Operator];
        let keys: BTreeMap<Role, SigningKey> =
            roles.into_iter().map(|role| (role, SigningKey::generate().unwrap())).collect();
        let root_key = |(role, key): (&Role, &SigningKey)| RootKey {
            holder: format!("{role:?}"),
            roles: vec![*role],
            audience,
            scheme: Scheme::Ed25519,
            public: key.public(),
        };
        let root = Root {
            version: 1,
            expires: hours(1000),
            audience,
            keys: keys.iter().map(root_key).collect(),
            thresholds: BTreeMap::new(),
        };
        let root = Envelope::sign(root, &keys[&Role::Root]);
        Self { keys, root, boots: None }
    }

    pub fn order(
        &self,
        id: &str,
        class: &Class,
        install: Vec<PackageFile>,
        replaces: Vec<Replaced>,
    ) -> (Order, Envelope) {
        let order = Order {
            id: id.into(),
            title: "test".into(),
            severity: Severity::Important,
            kind: Kind::Routine,
            advisories: vec![],
            class: class.clone(),
            install,
            replaces,
            production: vec![],
            after: vec![],
            supersedes: vec![],
            rollback: RollbackClass::Proven,
            not_after: None,
            on_failure: OnFailure::Leave,
            rollback_files: RollbackFiles::WhenNeeded,
            reboot: None,
            script: None,
        };
        let envelope = Envelope::sign(order.clone(), &self.keys[&Role::Drafter]);
        (order, envelope)
    }

    pub fn release(&self, order: &Order, digest: Digest, transaction: &[&str]) -> Envelope {
        self.release_that_took(order, digest, transaction, Vec::new())
    }

    /// A release that says what the patch took on file systems.
    pub fn release_that_took(
        &self,
        order: &Order,
        digest: Digest,
        transaction: &[&str],
        grown: Vec<Growth>,
    ) -> Envelope {
        let baseline = BaselineProof {
            name: "test@1".into(),
            digest: Digest::of("baseline"),
            transaction: transaction.iter().map(|line| (*line).to_owned()).collect(),
            apply_ms: 1,
            rollback_ms: 1,
            reboot_needed: false,
            rollback: Rollback::Proven,
            grown,
            boots: self.boots.clone(),
        };
        let proof = Proof {
            order: digest,
            class: order.class.clone(),
            at: hours(-2),
            not_after: None,
            baselines: vec![baseline],
            waivers: vec![],
        };
        let release = Release {
            result: TestResult::Passed,
            configuration: vec![],
            passed_tests: vec![],
            failed_tests: vec![],
            warned_tests: vec![],
            proof,
        };
        Envelope::sign(release, &self.keys[&Role::Releaser])
    }

    pub fn approval(&self, order: Digest, release: Digest) -> Envelope {
        let approval = Approval {
            approver: "someone".into(),
            order,
            release,
            hosts_at_most: 1,
            at: hours(-1),
            not_after: hours(10),
        };
        Envelope::sign(approval, &self.keys[&Role::Approver])
    }

    /// An activation for `host`, signed as `role`; `wave` only makes it another document.
    pub fn activation(&self, order: Digest, action: Action, host: &str, role: Role, wave: u32) -> Envelope {
        self.activation_from(order, action, host, role, wave, hours(-1))
    }

    /// An activation that does not count before `not_before`.
    pub fn activation_from(
        &self,
        order: Digest,
        action: Action,
        host: &str,
        role: Role,
        wave: u32,
        not_before: Timestamp,
    ) -> Envelope {
        let activation = Activation {
            order,
            action,
            site: "test".into(),
            wave,
            hosts: vec![host.into()],
            at: hours(-1),
            not_before,
            not_after: hours(1),
        };
        Envelope::sign(activation, &self.keys[&role])
    }
}
