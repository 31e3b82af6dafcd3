//! Keys of SNMPv3's user-based security model, for the one pair of protocols that is spoken here: HMAC-192-SHA-256 (RFC 7860) and
//! AES-128 (RFC 3826). A key is localized: it is of use with one engine alone.

use sha2::{Digest as _, Sha256};

use crate::enrolment::EngineId;

/// Bytes of a localized key for authentication, and of SHA-256 (RFC 7860, 4.2.2).
pub const AUTH_KEY_BYTES: usize = 32;
/// Bytes of a localized key for privacy (RFC 3826, 3.1.2.1): the first ones of what its passphrase is localized to.
pub const PRIVACY_KEY_BYTES: usize = 16;

/// Bytes to which a passphrase is repeated (RFC 3414, A.2.1).
const EXPANDED: usize = 1 << 20;

/// A passphrase's key, localized to an engine (RFC 3414, A.2, with SHA-256). An empty passphrase makes an empty key of no use.
pub fn localized(passphrase: &str, engine: &EngineId) -> [u8; AUTH_KEY_BYTES] {
    let endless: Vec<u8> = passphrase.bytes().cycle().take(64 * passphrase.len()).collect();
    let mut hash = Sha256::new();
    let mut left = EXPANDED;
    while left > 0 && !endless.is_empty() {
        let piece = &endless[..left.min(endless.len())];
        hash.update(piece);
        left -= piece.len();
    }
    let master = hash.finalize();
    Sha256::new().chain_update(master).chain_update(engine.as_bytes()).chain_update(master).finalize().into()
}

/// The new key of a `KeyChange` value (RFC 3414, 5): random bytes and the difference, each as long as the key. `None` when the value is
/// not as long as it must, or the key longer than one SHA-256.
pub fn changed(old: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    if value.len() != 2 * old.len() || old.len() > AUTH_KEY_BYTES {
        return None;
    }
    let (random, delta) = value.split_at(old.len());
    Some(differ(old, random, delta))
}

/// The `KeyChange` value that leads from one key to another of the same length; `random` is as long as they are, and never used again.
/// `None` when they are not.
pub fn key_change(old: &[u8], new: &[u8], random: &[u8]) -> Option<Vec<u8>> {
    let fit = old.len() == new.len() && old.len() == random.len() && old.len() <= AUTH_KEY_BYTES;
    fit.then(|| [random, &differ(old, random, new)].concat())
}

/// What the old key and the random bytes hash to, combined with `other`: of the new key, the difference, and of the difference, the new
/// key.
fn differ(old: &[u8], random: &[u8], other: &[u8]) -> Vec<u8> {
    let hash = Sha256::new().chain_update(old).chain_update(random).finalize();
    hash.iter().zip(other).map(|(a, b)| a ^ b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passphrase and engine of RFC 3414, A.3, which has no example for SHA-256; the key is by Python's hashlib.
    #[test]
    fn a_passphrase_is_localized_as_others_do_it() {
        let engine: EngineId = "000000000000000000000002".parse().unwrap();
        let key = localized("maplesyrup", &engine);
        assert_eq!(hex::encode(key), "8982e0e549e866db361a6b625d84cccc11162d453ee8ce3a6445c2d6776f0f8b");
    }

    #[test]
    fn a_key_change_leads_from_the_old_key_to_the_new_one_and_from_no_other() {
        for length in [AUTH_KEY_BYTES, PRIVACY_KEY_BYTES] {
            let [old, new, random] = [3_u8, 7, 9].map(|byte| vec![byte; length]);
            let value = key_change(&old, &new, &random).unwrap();
            assert_eq!(value.len(), 2 * length);
            assert_eq!(changed(&old, &value).unwrap(), new);
            assert_ne!(changed(&random, &value).unwrap(), new);
            assert_eq!(changed(&old, &value[1..]), None);
        }
        assert_eq!(key_change(&[1; 33], &[2; 33], &[3; 33]), None);
    }
}
