//! Signed results: a state counts only when the host's enrolment key says so, about this very run, in its place in the host's
//! chain. Pure.

use patchlab_protocol::{
    Digest, PublicKey,
    document::{RunResult, RunState},
    limits,
};

use super::row::Signed;

/// Which result is expected.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The host.
    pub host: &'a str,
    /// Its enrolment key.
    pub key: &'a PublicKey,
    /// The order.
    pub order: &'a Digest,
    /// The run index.
    pub run: u32,
    /// The state its table shows.
    pub state: RunState,
}

/// Why a result does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// None came.
    #[error("the host gave no signed result")]
    Unsigned,
    /// Not by this host's key.
    #[error("the result is not signed by the enrolment key of {0}")]
    BadSignature(String),
    /// Not a result.
    #[error("the signed result is not readable: {0}")]
    NotAResult(String),
    /// About something else.
    #[error("the signed result speaks of another {0} than it should")]
    AboutElse(&'static str),
    /// Not in its place.
    #[error(
        "the result does not follow the last one known of this host: results in between are missing, or its state was reverted"
    )]
    Unchained,
}

/// The digest of a result, by which the next one names it.
pub fn digest(signed: &Signed) -> Digest {
    Digest::of(&signed.statement)
}

/// Reads a result whose signature is the host's.
pub fn read(signed: &Signed, host: &str, key: &PublicKey) -> Result<RunResult, ResultError> {
    if signed.statement.len() > limits::RESULT_BYTES
        || !key.verifies(&RunResult::signed_bytes(&signed.statement), &signed.signature)
    {
        return Err(ResultError::BadSignature(host.to_owned()));
    }
    let result: RunResult =
        serde_json::from_slice(&signed.statement).map_err(|error| ResultError::NotAResult(error.to_string()))?;
    if result.host == host { Ok(result) } else { Err(ResultError::AboutElse("host")) }
}

/// Reads the result of a run: signed by the host, about this run, saying what its table says.
pub fn verify(signed: Option<&Signed>, expected: &Expected<'_>) -> Result<RunResult, ResultError> {
    let result = read(signed.ok_or(ResultError::Unsigned)?, expected.host, expected.key)?;
    if result.order != *expected.order {
        return Err(ResultError::AboutElse("order"));
    }
    if result.run != expected.run {
        return Err(ResultError::AboutElse("run"));
    }
    if result.state != expected.state {
        return Err(ResultError::AboutElse("state"));
    }
    Ok(result)
}

/// The way from the last known result to this one through results of the same host that this server has not seen, oldest
/// first; each is signed. Empty when it follows directly.
pub fn bridge(
    known: Option<Digest>,
    result: &RunResult,
    others: &[Signed],
    host: &str,
    key: &PublicKey,
) -> Result<Vec<RunResult>, ResultError> {
    let mut missing = Vec::new();
    let mut wanted = result.previous;
    while wanted != known {
        // The first result of a host follows nothing: beyond it there is nothing to find.
        let digest_wanted = wanted.ok_or(ResultError::Unchained)?;
        let next = others.iter().find(|signed| digest(signed) == digest_wanted).ok_or(ResultError::Unchained)?;
        let next = read(next, host, key)?;
        wanted = next.previous;
        missing.push(next);
        // A chain cannot be longer than what there is: this is a loop made on purpose.
        if missing.len() > others.len() {
            return Err(ResultError::Unchained);
        }
    }
    missing.reverse();
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{SigningKey, document::Checks};

    use super::*;

    fn signed(key: &SigningKey, run: u32, state: RunState, previous: Option<Digest>) -> Signed {
        let result = RunResult {
            host: "web-1".into(),
            order: Digest::of("order"),
            run,
            action: None,
            preparation: None,
            operator: None,
            state,
            refusal: None,
            started: 1,
            ended: 2,
            before: Digest::of("a"),
            after: Digest::of("b"),
            checks: Checks::default(),
            cause: None,
            previous,
            audit: None,
        };
        let statement = serde_json::to_vec(&result).unwrap();
        let signature = key.sign(&RunResult::signed_bytes(&statement)).to_vec();
        Signed { statement, signature }
    }

    #[test]
    fn only_the_hosts_own_word_about_this_run_counts() {
        let key = SigningKey::from_seed(&[1; 32]);
        let public = key.public();
        let order = Digest::of("order");
        let expected = Expected { host: "web-1", key: &public, order: &order, run: 3, state: RunState::Succeeded };
        let good = signed(&key, 3, RunState::Succeeded, None);
        assert_eq!(verify(Some(&good), &expected).unwrap().run, 3);
        assert_eq!(verify(None, &expected), Err(ResultError::Unsigned));
        let other = SigningKey::from_seed(&[2; 32]);
        assert!(matches!(
            verify(Some(&signed(&other, 3, RunState::Succeeded, None)), &expected),
            Err(ResultError::BadSignature(_))
        ));
        let mut altered = good.clone();
        altered.statement[20] ^= 1;
        assert!(matches!(verify(Some(&altered), &expected), Err(ResultError::BadSignature(_))));
        let about = |signed: Signed, expected: Expected<'_>| verify(Some(&signed), &expected).unwrap_err();
        assert_eq!(about(signed(&key, 4, RunState::Succeeded, None), expected), ResultError::AboutElse("run"));
        assert_eq!(about(signed(&key, 3, RunState::Failed, None), expected), ResultError::AboutElse("state"));
        let elsewhere = Digest::of("other order");
        assert_eq!(about(good.clone(), Expected { order: &elsewhere, ..expected }), ResultError::AboutElse("order"));
        assert_eq!(about(good, Expected { host: "web-2", ..expected }), ResultError::AboutElse("host"));
    }

    #[test]
    fn gaps_are_bridged_by_signed_results_only() {
        let key = SigningKey::from_seed(&[1; 32]);
        let public = key.public();
        let one = signed(&key, 1, RunState::Succeeded, None);
        let two = signed(&key, 2, RunState::Refused, Some(digest(&one)));
        let three = signed(&key, 3, RunState::Succeeded, Some(digest(&two)));
        let newest = read(&three, "web-1", &public).unwrap();
        let all = [one.clone(), two.clone(), three];
        let bridged = |known, others: &[Signed]| {
            bridge(known, &newest, others, "web-1", &public).map(|b| b.iter().map(|r| r.run).collect::<Vec<_>>())
        };
        assert_eq!(bridged(Some(digest(&two)), &[]), Ok(vec![]));
        assert_eq!(bridged(Some(digest(&one)), &all), Ok(vec![2]));
        assert_eq!(bridged(None, &all), Ok(vec![1, 2]));
        assert_eq!(bridged(None, &all[1..]), Err(ResultError::Unchained));
        assert_eq!(bridged(Some(Digest::of("never seen")), &all), Err(ResultError::Unchained));
    }
}
