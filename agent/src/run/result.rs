//! The signed result of a run.

use patchlab_protocol::{
    Digest, SigningKey,
    document::{Checks, RunResult},
    limits,
};

use crate::state::Run;

/// A result statement is larger than a PDU can carry: a fault of the agent, since all its parts are bounded.
#[derive(Debug, thiserror::Error)]
#[error("the result statement has {bytes} bytes, more than {limit}", limit = limits::RESULT_BYTES)]
pub struct TooLarge {
    bytes: usize,
}

/// Who signs, and after what.
pub struct Chain<'a> {
    /// The host's enrolled name.
    pub host: &'a str,
    /// Its key.
    pub key: &'a SigningKey,
    /// Digest of the previous result.
    pub previous: Option<Digest>,
    /// The newest audit head seen.
    pub audit: Option<Digest>,
}

/// Writes statement and signature (hexadecimal digits) into a run that ended.
///
/// # Errors
/// When the statement is too large.
pub fn sign(run: &mut Run, order: Digest, index: u32, checks: Checks, chain: &Chain<'_>) -> Result<(), TooLarge> {
    let unknown = || Digest::of("");
    let statement = RunResult {
        host: chain.host.to_owned(),
        order,
        run: index,
        action: run.action,
        preparation: run.preparation,
        operator: run.operator,
        state: run.state,
        refusal: run.refusal,
        started: run.started.div_euclid(1000),
        ended: run.ended.unwrap_or(run.started).div_euclid(1000),
        before: run.before.unwrap_or_else(unknown),
        after: run.after.or(run.before).unwrap_or_else(unknown),
        checks,
        cause: run.failure.as_ref().map(|failure| failure.cause),
        previous: chain.previous,
        audit: chain.audit,
    };
    // Strings, numbers and digests: serialisation cannot fail.
    let text = serde_json::to_string(&statement).unwrap_or_default();
    if text.len() > limits::RESULT_BYTES {
        return Err(TooLarge { bytes: text.len() });
    }
    run.signature = hex::encode(chain.key.sign(&RunResult::signed_bytes(text.as_bytes())));
    run.result = text;
    Ok(())
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{
        Refusal,
        document::{Action, Cause, RunState},
    };

    use super::*;
    use crate::state::Failure;

    #[test]
    fn the_largest_result_fits_and_its_signature_verifies() {
        let key = SigningKey::from_seed(&[7; 32]);
        let mut run = Run::received(u32::MAX, i64::from(u32::MAX) * 1000);
        run.action = Some(Action::Rollback);
        run.state = RunState::RollbackFailed;
        run.refusal = Some(Refusal::TransactionDiffers);
        run.failure = Some(Failure { cause: Cause::Interrupted, reason: "x".repeat(1000) });
        run.ended = Some(i64::from(u32::MAX) * 1000 + 1);
        let digest = Digest::of("x");
        let host = "h".repeat(limits::HOST_NAME_BYTES);
        let chain = Chain { host: &host, key: &key, previous: Some(digest), audit: Some(digest) };
        let checks = Checks { passed: u32::MAX, failed: u32::MAX };
        sign(&mut run, digest, u32::MAX, checks, &chain).unwrap();
        assert!(run.result.len() <= limits::RESULT_BYTES, "{}", run.result.len());
        let message = RunResult::signed_bytes(run.result.as_bytes());
        assert!(key.public().verifies(&message, &hex::decode(&run.signature).unwrap()));
    }
}
