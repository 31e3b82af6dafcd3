//! Whether an order may make a baseline's successor: only with a release that proves it on that very baseline.

use patchlab_protocol::{
    Digest, Envelope, KeyId, PublicKey,
    document::{Release, Rollback, TestResult},
    envelope::EnvelopeError,
};

/// An order makes no successor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionError {
    /// The release cannot be read.
    #[error("the release cannot be read: {0}")]
    Unreadable(String),
    /// Nobody who may has signed it.
    #[error(
        "no releaser that is trusted here signed the release (signed by {}): name the public half of the key with --trust KEY.pub",
        listed(.signers)
    )]
    NotReleased {
        /// Those who say that they did.
        signers: Vec<KeyId>,
    },
    /// It is over something else.
    #[error("the release is over order {released}, and this order has digest {order}: it was drafted again since")]
    OtherOrder {
        /// What was released.
        released: Digest,
        /// What is here.
        order: Digest,
    },
    /// It says that the order did not pass.
    #[error("the release says that the order did not pass")]
    NotPassed,
    /// It was proven elsewhere.
    #[error("the release proves the order on {}, not on {baseline}: validate it there first", .proven.join(", "))]
    OtherBaseline {
        /// The baseline that is to have a successor.
        baseline: String,
        /// Those that it was proven on.
        proven: Vec<String>,
    },
    /// The way back was not walked there.
    #[error("the release does not prove the way back on {0}")]
    NoWayBack(String),
}

fn listed(keys: &[KeyId]) -> String {
    match keys {
        [] => "nobody".into(),
        keys => keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

impl From<EnvelopeError> for SuccessionError {
    fn from(error: EnvelopeError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// Decides, and says who released it. Pure. `baseline` is the parent's full name and digest.
///
/// # Errors
/// The release is not one, is over something else, or was proven elsewhere.
pub fn may_succeed<'k>(
    release: &Envelope,
    releasers: impl IntoIterator<Item = &'k PublicKey>,
    order: Digest,
    baseline: (&str, Digest),
) -> Result<KeyId, SuccessionError> {
    let signer = release.signers(releasers).into_iter().next();
    let signer = signer.ok_or_else(|| SuccessionError::NotReleased { signers: release.claimed_signers() })?;
    let said: Release = release.statement::<Release>()?.predicate;
    if said.proof.order != order {
        return Err(SuccessionError::OtherOrder { released: said.proof.order, order });
    }
    if said.result != TestResult::Passed {
        return Err(SuccessionError::NotPassed);
    }
    let (name, digest) = baseline;
    let Some(proof) = said.proof.baselines.iter().find(|proof| proof.digest == digest) else {
        let proven = said.proof.baselines.into_iter().map(|proof| proof.name).collect();
        return Err(SuccessionError::OtherBaseline { baseline: name.to_owned(), proven });
    };
    match proof.rollback {
        Rollback::Proven => Ok(signer),
        Rollback::Failed | Rollback::Skipped => Err(SuccessionError::NoWayBack(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use patchlab_protocol::{
        SigningKey,
        document::{BaselineProof, Class, Proof},
    };

    use super::*;

    fn release() -> Release {
        let baseline = BaselineProof {
            name: "web@1".into(),
            digest: Digest::of("web"),
            transaction: vec![],
            apply_ms: 1,
            rollback_ms: 1,
            reboot_needed: false,
            rollback: Rollback::Proven,
            grown: Vec::new(),
            boots: None,
        };
        Release {
            result: TestResult::Passed,
            configuration: vec![],
            passed_tests: vec![],
            failed_tests: vec![],
            warned_tests: vec![],
            proof: Proof {
                order: Digest::of("order"),
                class: Class { family: "debian".into(), release: "12".into(), arch: "x86_64".into() },
                at: Timestamp::UNIX_EPOCH,
                not_after: None,
                baselines: vec![baseline],
                waivers: vec![],
            },
        }
    }

    #[test]
    fn only_a_release_of_this_order_on_this_baseline_by_a_trusted_key_makes_a_successor() {
        let (key, stranger) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let trusted = [key.public()];
        let judged = |release: Release, by: &SigningKey| {
            may_succeed(&Envelope::sign(release, by), &trusted, Digest::of("order"), ("web@1", Digest::of("web")))
        };
        assert_eq!(judged(release(), &key), Ok(key.public().id()));
        let signers = vec![stranger.public().id()];
        assert_eq!(judged(release(), &stranger), Err(SuccessionError::NotReleased { signers }));
        let changed = |change: fn(&mut Release)| {
            let mut changed = release();
            change(&mut changed);
            judged(changed, &key).unwrap_err()
        };
        assert!(matches!(changed(|r| r.proof.order = Digest::of("x")), SuccessionError::OtherOrder { .. }));
        assert_eq!(changed(|r| r.result = TestResult::Failed), SuccessionError::NotPassed);
        let elsewhere = changed(|r| r.proof.baselines[0].digest = Digest::of("x"));
        assert!(matches!(elsewhere, SuccessionError::OtherBaseline { .. }), "{elsewhere}");
        let way_back = changed(|r| r.proof.baselines[0].rollback = Rollback::Skipped);
        assert_eq!(way_back, SuccessionError::NoWayBack("web@1".into()));
        let other = Envelope::sign(release(), &key);
        assert!(may_succeed(&other, &[], Digest::of("order"), ("web@1", Digest::of("web"))).is_err());
    }
}
