//! What a near member may serve as a document, and what a stranger may say at the enrolment door: it is read without harm, and signed by
//! nobody.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use patchlab_protocol::{
    Envelope, SigningKey,
    admission::Application,
    document::{Activation, Approval, Order, Release, Revocation, Root},
};

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate().expect("random bytes"));

fuzz_target!(|bytes: &[u8]| {
    let Ok(envelope) = Envelope::from_bytes(bytes) else { return };
    assert!(envelope.signers([&KEY.public()]).is_empty(), "a key that nobody has signed it");
    let _ = envelope.statement::<Order>();
    let _ = envelope.statement::<Release>();
    let _ = envelope.statement::<Approval>();
    let _ = envelope.statement::<Activation>();
    let _ = envelope.statement::<Revocation>();
    let _ = envelope.statement::<Root>();
    let _ = Application::read(bytes);
    let again = Envelope::from_bytes(&envelope.to_bytes()).expect("what was read can be read again");
    assert_eq!(again.digest(), envelope.digest());
});
