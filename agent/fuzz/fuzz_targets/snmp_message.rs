//! A datagram of anybody's at the agent's port. The front reads it without harm, seals nothing that bears no user's key, and sees in it the same
//! user and the same message as the engine behind it: where the two read differently, one user might pass for another.

#![no_main]

use std::sync::LazyLock;

use async_snmp::{
    DecodeConfig,
    message::Message,
    v3::{SaltCounter, UsmSecurityParams},
};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use patchlab_agent::snmp::seal::{Outside, Seal};

/// A user's key, a secret inside, and what new salts are made of.
static KEYS: LazyLock<(Seal, Seal, SaltCounter)> = LazyLock::new(|| {
    let seal = |byte| Seal::new(&[byte; 32], &[byte; 16]).expect("keys of the right length");
    (seal(1), seal(2), SaltCounter::new().expect("random bytes"))
});

fuzz_target!(|datagram: &[u8]| {
    let (key, secret, salts) = &*KEYS;
    let Some(outside) = Outside::of(datagram) else { return };
    let mut message = datagram.to_vec();
    assert!(outside.reseal(&mut message, key, secret, salts).is_none(), "nobody's message was sealed");
    assert_eq!(message, datagram);
    let Ok(decoded) = Message::decode(Bytes::copy_from_slice(datagram), DecodeConfig::default()) else { return };
    let Message::V3(inside) = decoded.value else { panic!("the front takes an older message for one of version 3") };
    let parameters = inside.security_params().clone();
    let Ok(parameters) = UsmSecurityParams::decode(parameters, DecodeConfig::default()) else { return };
    assert_eq!(outside.user, &parameters.value.username()[..], "the front sees another user");
    assert_eq!(outside.id, inside.global_data().msg_id(), "the front sees another message");
});
