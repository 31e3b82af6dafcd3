//! The token that enrols one host, once: what an administrator carries from the server to the host, in one line.
//!
//! It says where the server's enrolment door is and which key answers there, so that a host needs neither a name service nor an
//! authority to know whom it speaks to; which root document it will be given; and a secret by which the door knows the host. Who has
//! the line can enrol in the host's place, until somebody has.
//!
//! ```text
//! patchlab1_ base64url( length of the host's name, 1 byte | the name | 4 or 6 | IP address | port, 2 bytes | pin, 32 | root, 32 |
//!                       secret, 32 | not after, seconds since 1970, 8 | the first 4 bytes of the SHA-256 of all before )
//! ```
//!
//! Numbers are in network order. The last four bytes find a line that was not copied whole; they protect from nothing else.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{Digest, enrolment::is_host_name, key::KeyError, limits};

/// What every token of this form begins with. Another form gets another number.
pub const PREFIX: &str = "patchlab1_";
/// Bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Bytes of a digest.
const DIGEST_BYTES: usize = 32;
/// Bytes that find a line that was not copied whole.
const CHECK_BYTES: usize = 4;

/// A secret of 256 bits. Shown nowhere but in the token and in the one request that presents it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// A new one from the operating system's entropy.
    ///
    /// # Errors
    /// When that gives no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| KeyError::Entropy(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// What a server keeps of it, and compares: nobody gets from there to the secret.
    pub fn digest(&self) -> Digest {
        Digest::of(self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// 64 hexadecimal digits, for the one request that carries it.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut bytes = [0; SECRET_BYTES];
        let text = String::deserialize(deserializer)?;
        hex::decode_to_slice(text, &mut bytes).map_err(|_| D::Error::custom("expected 64 hexadecimal digits"))?;
        Ok(Self(bytes))
    }
}

/// Enrols one host, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolmentToken {
    /// The name that the host is enrolled by.
    pub host: String,
    /// The server's enrolment door, as the host reaches it.
    pub server: SocketAddr,
    /// SHA-256 of the SubjectPublicKeyInfo (DER) of the key that answers there.
    pub pin: Digest,
    /// Digest of the root document that the host will pin.
    pub root: Digest,
    /// What the door knows the host by.
    pub secret: Secret,
    /// The token's last moment, to a second. The server's clock decides.
    pub not_after: Timestamp,
}

/// Not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Something else.
    #[error("this is no enrolment token: one begins with {PREFIX}, as patchlab host token create prints it")]
    NotAToken,
    /// It has been cut off, or changed.
    #[error("the enrolment token is damaged: copy the whole line again")]
    Damaged,
    /// It is whole and says what no server writes.
    #[error("the enrolment token is not usable: {0}; have another one made")]
    Unusable(&'static str),
}

impl fmt::Display for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(192);
        // A name has at most 64 bytes: whoever made the token with a longer one gets none that can be read.
        bytes.push(u8::try_from(self.host.len()).unwrap_or(u8::MAX));
        bytes.extend(self.host.as_bytes());
        match self.server.ip() {
            IpAddr::V4(ip) => bytes.extend([&[4][..], &ip.octets()].concat()),
            IpAddr::V6(ip) => bytes.extend([&[6][..], &ip.octets()].concat()),
        }
        bytes.extend(self.server.port().to_be_bytes());
        bytes.extend(self.pin.as_bytes());
        bytes.extend(self.root.as_bytes());
        bytes.extend(self.secret.0);
        bytes.extend(self.not_after.as_second().to_be_bytes());
        let check = Digest::of(&bytes);
        bytes.extend(&check.as_bytes()[..CHECK_BYTES]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for EnrolmentToken {
    type Err = BadToken;

    /// White space around it is no part of it.
    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).ok_or(BadToken::NotAToken)?;
        if text.len() > limits::TOKEN_BYTES {
            return Err(BadToken::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| BadToken::Damaged)?;
        let (said, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(BadToken::Damaged)?;
        if Digest::of(said).as_bytes()[..CHECK_BYTES] != *check {
            return Err(BadToken::Damaged);
        }
        let mut rest = Fields(said);
        let length = usize::from(rest.array::<1>()?[0]);
        let host = String::from_utf8(rest.take(length)?.to_vec()).map_err(|_| BadToken::Damaged)?;
        if !is_host_name(&host) {
            return Err(BadToken::Unusable("its name is no host's"));
        }
        let ip = match rest.array::<1>()?[0] {
            4 => IpAddr::from(rest.array::<4>()?),
            6 => IpAddr::from(rest.array::<16>()?),
            _ => return Err(BadToken::Unusable("it names no IP address")),
        };
        let server = SocketAddr::new(ip, u16::from_be_bytes(rest.array()?));
        let pin = Digest::from(rest.array::<DIGEST_BYTES>()?);
        let root = Digest::from(rest.array::<DIGEST_BYTES>()?);
        let secret = Secret(rest.array()?);
        let seconds = i64::from_be_bytes(rest.array()?);
        let not_after =
            Timestamp::from_second(seconds).map_err(|_| BadToken::Unusable("its last moment is no time"))?;
        if rest.0.is_empty() { Ok(Self { host, server, pin, root, secret, not_after }) } else { Err(BadToken::Damaged) }
    }
}

/// What is still to be read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BadToken> {
        let (field, rest) = self.0.split_at_checked(length).ok_or(BadToken::Damaged)?;
        self.0 = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadToken> {
        self.take(N)?.try_into().map_err(|_| BadToken::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> EnrolmentToken {
        EnrolmentToken {
            host: "web-1".into(),
            server: "192.0.2.1:8473".parse().unwrap(),
            pin: Digest::of("key"),
            root: Digest::of("root"),
            secret: Secret([7; SECRET_BYTES]),
            not_after: "2026-11-30T17:00:00Z".parse().unwrap(),
        }
    }

    fn any_token() -> impl Strategy<Value = EnrolmentToken> {
        let digest = || any::<[u8; 32]>().prop_map(Digest::from);
        let seconds = Timestamp::MIN.as_second()..=Timestamp::MAX.as_second();
        let name = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}";
        (name, any::<(IpAddr, u16)>(), digest(), digest(), any::<[u8; 32]>(), seconds).prop_map(
            |(host, server, pin, root, secret, seconds)| EnrolmentToken {
                host,
                server: server.into(),
                pin,
                root,
                secret: Secret(secret),
                not_after: Timestamp::from_second(seconds).unwrap(),
            },
        )
    }

    proptest! {
        #[test]
        fn a_token_is_read_as_it_was_written(token in any_token()) {
            let text = token.to_string();
            prop_assert!(text.len() <= limits::TOKEN_BYTES, "{} bytes", text.len());
            prop_assert_eq!(text.parse::<EnrolmentToken>(), Ok(token));
        }

        #[test]
        fn whatever_comes_is_read_or_refused(text in "(patchlab1_)?[A-Za-z0-9_-]{0,300}", bytes in any::<Vec<u8>>()) {
            prop_assert!(text.parse::<EnrolmentToken>().is_err());
            let check = &Digest::of(&bytes).as_bytes()[..CHECK_BYTES].to_vec();
            let whole = PREFIX.to_owned() + &URL_SAFE_NO_PAD.encode([bytes.as_slice(), check].concat());
            prop_assert!(whole.parse::<EnrolmentToken>().is_err());
        }
    }

    #[test]
    fn one_that_was_not_copied_whole_is_found() {
        let text = token().to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        for end in PREFIX.len()..text.len() {
            assert_eq!(text[..end].parse::<EnrolmentToken>(), Err(BadToken::Damaged), "{end} bytes of it");
        }
        assert_eq!(format!("{text}{}", "A".repeat(400)).parse::<EnrolmentToken>(), Err(BadToken::Damaged));
        assert_eq!("patchlab2_AAAA".parse::<EnrolmentToken>(), Err(BadToken::NotAToken));
    }

    #[test]
    fn one_for_no_host_is_refused() {
        for host in ["", ".hidden", "../up", "two words", &"x".repeat(65)] {
            let text = EnrolmentToken { host: host.into(), ..token() }.to_string();
            assert!(matches!(text.parse::<EnrolmentToken>(), Err(BadToken::Unusable(_))), "{host:?}");
        }
    }

    #[test]
    fn the_secret_stays_out_of_logs() {
        let shown = format!("{:?}", token());
        assert!(shown.contains("web-1") && shown.contains("Secret(..)"), "{shown}");
        assert!(!shown.contains("7, 7") && !shown.contains("0707"), "{shown}");
    }
}
