//! A message's seal: who sent it, authenticated and encrypted with that user's keys (RFC 3414, 6.3; RFC 3826). Taken off and put on anew
//! with other keys, in place: nothing else of the message changes, not even its length. Pure.

use std::ops::Range;

use async_snmp::{
    AuthProtocol, PrivProtocol,
    ber::{Decoder, tag::universal},
    v3::{
        LocalizedKey, PrivKey, SaltCounter,
        auth::{authenticate_message, verify_message},
    },
};

/// `msgFlags` of RFC 3412: the message is authenticated.
const AUTHENTICATED: u8 = 1;
/// `msgFlags`: it is encrypted, too.
const ENCRYPTED: u8 = 2;

/// The keys that seal one user's messages.
#[derive(Debug)]
pub struct Seal {
    auth: LocalizedKey,
    privacy: PrivKey,
}

impl Seal {
    /// From localized keys.
    ///
    /// # Errors
    /// When one of them is too short.
    pub fn new(auth: &[u8], privacy: &[u8]) -> async_snmp::CryptoResult<Self> {
        Ok(Self {
            auth: LocalizedKey::from_bytes(AuthProtocol::Sha256, auth)?,
            privacy: PrivKey::from_bytes(PrivProtocol::Aes128, privacy)?,
        })
    }

    /// From a library's keys.
    pub fn of(auth: LocalizedKey, privacy: PrivKey) -> Self {
        Self { auth, privacy }
    }
}

/// An SNMPv3 message of the user-based security model, as far as its seal asks. What is no such message has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// `msgID`: an answer has that of its request.
    pub id: i32,
    /// `msgAuthoritativeEngineID`.
    pub engine: Vec<u8>,
    /// `msgUserName`.
    pub user: Vec<u8>,
    flags: u8,
    boots: u32,
    time: u32,
    auth: Range<usize>,
    privacy: Range<usize>,
    /// The encrypted scoped PDU; `None` when it lies open.
    encrypted: Option<Range<usize>>,
}

/// The version that a message says it has, whatever follows; `None` of what is no SNMP message at all.
pub fn version(message: &[u8]) -> Option<i32> {
    let mut decoder = Decoder::from_slice(message);
    decoder.expect_tag(universal::SEQUENCE).ok()?;
    decoder.read_integer().ok()
}

/// The bytes of an OCTET STRING that comes next, as their place in the whole.
fn place(decoder: &mut Decoder<'_>) -> Option<Range<usize>> {
    let length = decoder.expect_tag(universal::OCTET_STRING).ok()?;
    let start = decoder.offset();
    decoder.read_bytes(length).ok()?;
    Some(start..start + length)
}

impl Outside {
    /// Reads a message.
    pub fn of(message: &[u8]) -> Option<Self> {
        // No sub-decoders: places stay those of the whole message.
        let mut decoder = Decoder::from_slice(message);
        decoder.expect_tag(universal::SEQUENCE).ok()?;
        (decoder.read_integer().ok()? == 3).then_some(())?;
        decoder.expect_tag(universal::SEQUENCE).ok()?;
        let id = decoder.read_integer().ok()?;
        decoder.skip_tlv().ok()?;
        let [flags] = *decoder.read_octet_string().ok()? else { return None };
        (decoder.read_integer().ok()? == 3).then_some(())?;
        decoder.expect_tag(universal::OCTET_STRING).ok()?;
        decoder.expect_tag(universal::SEQUENCE).ok()?;
        let engine = decoder.read_octet_string().ok()?.to_vec();
        let mut number = || decoder.read_integer().ok().and_then(|number| u32::try_from(number).ok());
        let (boots, time) = (number()?, number()?);
        let user = decoder.read_octet_string().ok()?.to_vec();
        let (auth, privacy) = (place(&mut decoder)?, place(&mut decoder)?);
        let encrypted = place(&mut decoder);
        Some(Self { id, engine, user, flags, boots, time, auth, privacy, encrypted })
    }

    /// Whether it says that it is sealed.
    pub fn is_sealed(&self) -> bool {
        self.flags & AUTHENTICATED != 0
    }

    /// Whether it says that it has less than authentication and privacy. Privacy alone is no level at all (RFC 3412, 6.4).
    pub fn is_below_auth_priv(&self) -> bool {
        self.flags & ENCRYPTED == 0
    }

    /// Puts another seal on the message that this was read from. Nothing is changed when it does not bear the first one.
    #[must_use]
    pub fn reseal(&self, message: &mut [u8], from: &Seal, to: &Seal, salts: &SaltCounter) -> Option<()> {
        let auth = self.auth.clone();
        let genuine = verify_message(&from.auth, message, auth.start, auth.len()).ok()?;
        (genuine && self.is_sealed()).then_some(())?;
        let encrypted = match (&self.encrypted, self.flags & ENCRYPTED) {
            (Some(place), ENCRYPTED) => {
                let (open, salt) = (&message[place.clone()], &message[self.privacy.clone()]);
                let open = from.privacy.decrypt(open, self.boots, self.time, salt).ok()?;
                let (closed, salt) = to.privacy.encrypt_aes(&open, self.boots, self.time, salts).ok()?;
                (closed.len() == place.len() && salt.len() == self.privacy.len()).then_some(())?;
                Some((place.clone(), closed, salt))
            }
            _ => None,
        };
        if let Some((place, closed, salt)) = encrypted {
            message[place].copy_from_slice(&closed);
            message[self.privacy.clone()].copy_from_slice(&salt);
        }
        message[auth.clone()].fill(0);
        authenticate_message(&to.auth, message, auth.start, auth.len()).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An encrypted message, its words without meaning.
    fn sealed(seal: &Seal, salts: &SaltCounter) -> Vec<u8> {
        let open = hex::decode("301a0400040ea0").unwrap();
        let (closed, salt) = seal.privacy.encrypt_aes(&open, 3, 500, salts).unwrap();
        let string = |bytes: &[u8]| [&[4, u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let sequence = |parts: &[Vec<u8>]| {
            let content = parts.concat();
            [&[0x30, u8::try_from(content.len()).unwrap()], &content[..]].concat()
        };
        let number = |bytes: &[u8]| [&[2, u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let global = sequence(&[number(&[77]), number(&[5, 0]), string(&[7]), number(&[3])]);
        let usm =
            [string(b"engine"), number(&[3]), number(&[1, 0xf4]), string(b"user"), string(&[0; 24]), string(&salt)];
        let mut message = sequence(&[number(&[3]), global, string(&sequence(&usm)), string(&closed)]);
        let outside = Outside::of(&message).unwrap();
        authenticate_message(&seal.auth, &mut message, outside.auth.start, outside.auth.len()).unwrap();
        message
    }

    #[test]
    fn a_message_bears_the_new_seal_and_the_same_words() {
        let [old, new, other] = [1, 2, 3].map(|byte| Seal::new(&[byte; 32], &[byte; 16]).unwrap());
        let salts = SaltCounter::new().unwrap();
        let mut message = sealed(&old, &salts);
        let before = message.clone();
        let outside = Outside::of(&message).unwrap();
        assert_eq!((outside.id, &*outside.user, outside.is_sealed()), (77, &b"user"[..], true));
        assert_eq!(outside.reseal(&mut message, &other, &new, &salts), None);
        assert_eq!(message, before, "a strange seal is left as it is");
        outside.reseal(&mut message, &old, &new, &salts).unwrap();
        assert_eq!(message.len(), before.len());
        assert_eq!(outside.reseal(&mut message.clone(), &old, &new, &salts), None, "the old seal is gone");
        let again = Outside::of(&message).unwrap();
        let (closed, salt) = (&message[again.encrypted.clone().unwrap()], &message[again.privacy.clone()]);
        assert_eq!(*new.privacy.decrypt(closed, 3, 500, salt).unwrap(), *hex::decode("301a0400040ea0").unwrap());
    }

    /// What `cargo fuzz` begins with (agent/fuzz), at every build: as its target `snmp_message`.
    #[test]
    fn the_fuzzers_corpus_is_read_as_the_engine_reads_it() {
        use async_snmp::{DecodeConfig, message::Message, v3::UsmSecurityParams};
        let [mine, strange] = [1, 2].map(|byte| Seal::new(&[byte; 32], &[byte; 16]).unwrap());
        let salts = SaltCounter::new().unwrap();
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/snmp_message");
        let mut read = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let datagram = std::fs::read(entry.path()).unwrap();
            let Some(outside) = Outside::of(&datagram) else { continue };
            let mut message = datagram.clone();
            assert_eq!(outside.reseal(&mut message, &mine, &strange, &salts), None, "{entry:?}");
            assert_eq!(message, datagram, "{entry:?}");
            let decoded = Message::decode(datagram.into(), DecodeConfig::default()).unwrap();
            let Message::V3(inside) = decoded.value else { panic!("{entry:?} is of another version") };
            let parameters = inside.security_params().clone();
            let parameters = UsmSecurityParams::decode(parameters, DecodeConfig::default()).unwrap();
            assert_eq!(outside.user, &parameters.value.username()[..], "{entry:?}");
            assert_eq!(outside.id, inside.global_data().msg_id(), "{entry:?}");
            read.push(entry.file_name().into_string().unwrap());
        }
        read.sort();
        assert_eq!(read, ["authenticated", "authenticated-and-encrypted", "discovery"], "version-2c has no seal");
    }

    proptest! {
        #[test]
        fn what_strangers_send_is_read_or_not_and_never_resealed(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            keep in any::<prop::sample::Index>(),
            noise in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let [mine, strange] = [1, 2].map(|byte| Seal::new(&[byte; 32], &[byte; 16]).unwrap());
            let salts = SaltCounter::new().unwrap();
            let mut message = sealed(&strange, &salts);
            for (place, value) in changes {
                let place = place.index(message.len());
                message[place] = value;
            }
            message.truncate(keep.index(message.len() + 1));
            for mut message in [message, noise] {
                if let Some(outside) = Outside::of(&message) {
                    prop_assert_eq!(outside.reseal(&mut message, &mine, &strange, &salts), None);
                }
            }
        }
    }
}
