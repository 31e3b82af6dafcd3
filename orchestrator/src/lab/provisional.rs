//! The documents of one validation: the very order that will ship, with a release, an approval and activations signed by a key
//! whose audience is `lab`, made for this validation and forgotten after it. A production root lists no such key.

use jiff::{SignedDuration, Timestamp};
use patchlab_protocol::{
    Audience, Digest, Envelope, Role, SigningKey,
    document::{Action, Activation, Approval, Class, Order, Proof, Release, Root, RootKey, Scheme, TestResult},
    key::KeyError,
};
use serde::{Deserialize, Serialize};

/// How long the documents of one validation are valid.
const VALID: SignedDuration = SignedDuration::from_hours(12);
/// A guest's clock may be behind the moment of signing.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_mins(10);

/// The documents of one validation, all signed; no private key travels to the worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Provisional {
    /// The order's class.
    pub class: Class,
    /// The lab's root document, pinned in the clones' enrolment.
    pub root: Envelope,
    /// The order.
    pub order: Envelope,
    /// A release that proves nothing yet: it names no transaction.
    pub release: Envelope,
    /// An approval for this validation's clones.
    pub approval: Envelope,
    /// Activation for apply.
    pub apply: Envelope,
    /// Activation for rollback.
    pub rollback: Envelope,
}

/// How an order changes machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// Their package manager does.
    Packages,
    /// Its own script does.
    ByScript,
}

impl Provisional {
    /// How the order changes machines.
    pub fn changes(&self) -> Changes {
        match self.order.statement::<Order>() {
            Ok(order) if order.predicate.script.is_some() => Changes::ByScript,
            _ => Changes::Packages,
        }
    }

    /// Signs all documents for `order` on clones that are enrolled as `hosts`.
    pub fn sign(order: &Order, hosts: &[String], now: Timestamp) -> Result<Self, KeyError> {
        let key = SigningKey::generate()?;
        let root = Root {
            version: 1,
            expires: now + VALID,
            audience: Audience::Lab,
            keys: vec![RootKey {
                holder: "this validation".to_owned(),
                roles: vec![Role::Root, Role::Drafter, Role::Releaser, Role::Approver, Role::Activator],
                audience: Audience::Lab,
                scheme: Scheme::Ed25519,
                public: key.public(),
            }],
            thresholds: [].into(),
        };
        let signed_order = Envelope::sign(order.clone(), &key);
        let digest = signed_order.digest();
        let proof = Proof {
            order: digest,
            class: order.class.clone(),
            at: now - CLOCK_SLACK,
            not_after: Some(now + VALID),
            baselines: vec![],
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
        let release = Envelope::sign(release, &key);
        let approval = Approval {
            approver: "the lab".to_owned(),
            order: digest,
            release: release.digest(),
            hosts_at_most: hosts.len() as u32,
            at: now - CLOCK_SLACK,
            not_after: now + VALID,
        };
        let activation = |action| Envelope::sign(activation(digest, action, hosts, now), &key);
        Ok(Self {
            class: order.class.clone(),
            root: Envelope::sign(root, &key),
            order: signed_order,
            approval: Envelope::sign(approval, &key),
            apply: activation(Action::Apply),
            rollback: activation(Action::Rollback),
            release,
        })
    }

    /// Every document but the root, for the payload server.
    pub fn documents(&self) -> [&Envelope; 5] {
        [&self.order, &self.release, &self.approval, &self.apply, &self.rollback]
    }
}

fn activation(order: Digest, action: Action, hosts: &[String], now: Timestamp) -> Activation {
    Activation {
        order,
        action,
        site: "lab".to_owned(),
        wave: 1,
        hosts: hosts.to_vec(),
        at: now - CLOCK_SLACK,
        not_before: now - CLOCK_SLACK,
        not_after: now + VALID,
    }
}
