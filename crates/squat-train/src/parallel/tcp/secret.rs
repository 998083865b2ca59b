//! What keeps strangers out: a secret that all processes of a group hold, and messages sealed with keys made of it.
//!
//! When a connection opens, each side sends 32 random bytes and proves that it knows the secret, the caller first, so
//! that a visitor learns nothing. From secret and random bytes each direction gets a key of its own. Every message then
//! carries the HMAC-SHA256 of its number, its header and its bytes: none can be invented, changed, left out, repeated or
//! moved to another connection. Nothing is encrypted.

use crate::parallel::ParallelError;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of a proof or a seal.
pub(super) const TAG: usize = 32;

/// The environment variable that holds the secret.
pub const SECRET_VARIABLE: &str = "SQUAT_SECRET";

/// Fewer characters could be guessed.
const SHORTEST: usize = 16;

/// What the processes of a group share and nobody else knows; or nothing, where only this machine can connect.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Option<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Secret(..)" } else { "Secret(none)" })
    }
}

impl Secret {
    /// From the value of `SQUAT_SECRET`.
    ///
    /// # Errors
    /// A secret of fewer than 16 characters.
    pub fn new(value: Option<String>) -> Result<Self, ParallelError> {
        match value.filter(|value| !value.is_empty()) {
            Some(value) if value.chars().count() < SHORTEST => Err(ParallelError::Launch {
                launcher: SECRET_VARIABLE,
                problem: format!(
                    "the secret has fewer than {SHORTEST} characters; make one with: openssl rand -hex 32"
                ),
            }),
            value => Ok(Self(value)),
        }
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    fn mac(&self, purpose: &str, handshake: &[u8; 2 * TAG]) -> Option<Hmac<Sha256>> {
        let mut mac = keyed(self.0.as_ref()?.as_bytes());
        mac.update(purpose.as_bytes());
        mac.update(handshake);
        Some(mac)
    }

    /// What `purpose` proves in the connection of these random bytes; zeros without a secret.
    pub(super) fn proof(&self, purpose: &str, handshake: &[u8; 2 * TAG]) -> [u8; TAG] {
        self.mac(purpose, handshake).map_or([0; TAG], |mac| mac.finalize().into_bytes().into())
    }

    /// Whether `proof` is that of `purpose`, compared in constant time.
    pub(super) fn verify(&self, purpose: &str, handshake: &[u8; 2 * TAG], proof: &[u8; TAG]) -> bool {
        match self.mac(purpose, handshake) {
            Some(mac) => mac.verify_slice(proof).is_ok(),
            None => *proof == [0; TAG],
        }
    }

    /// The seal of one direction of a connection.
    pub(super) fn seal(&self, direction: &str, handshake: &[u8; 2 * TAG]) -> Seal {
        let key = self.mac(direction, handshake).map(|mac| keyed(&mac.finalize().into_bytes()));
        Seal { key, number: 0 }
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Makes or checks the seals of one direction of a connection, message by message.
pub(super) struct Seal {
    key: Option<Hmac<Sha256>>,
    number: u64,
}

impl Seal {
    /// Bytes that follow each message.
    pub(super) fn length(&self) -> usize {
        if self.key.is_some() { TAG } else { 0 }
    }

    fn next(&mut self, header: &[u8], payload: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = self.key.clone()?;
        mac.update(&self.number.to_le_bytes());
        self.number += 1;
        mac.update(header);
        mac.update(payload);
        Some(mac)
    }

    /// The seal of the next message; only the first [`Seal::length`] bytes are sent.
    pub(super) fn make(&mut self, header: &[u8], payload: &[u8]) -> [u8; TAG] {
        self.next(header, payload).map_or([0; TAG], |mac| mac.finalize().into_bytes().into())
    }

    /// Whether `tag` is the seal of the next message.
    pub(super) fn check(&mut self, header: &[u8], payload: &[u8], tag: &[u8]) -> bool {
        self.next(header, payload).is_none_or(|mac| mac.verify_slice(tag).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_message_of_the_same_direction_passes() {
        let secret = Secret::new(Some("sixteen letters!".into())).unwrap();
        let handshake = [7; 2 * TAG];
        let mut sender = secret.seal("from the caller", &handshake);
        let first = sender.make(b"head", b"body");
        let second = sender.make(b"head", b"body");
        assert_ne!(first, second, "a repeated message has another seal");
        let fresh = || secret.seal("from the caller", &handshake);
        assert!(fresh().check(b"head", b"body", &first));
        assert!(!fresh().check(b"head", b"body", &second), "the second message in the place of the first");
        assert!(!fresh().check(b"head", b"bodz", &first));
        assert!(!fresh().check(b"heae", b"body", &first));
        assert!(!fresh().check(b"head", b"body", &first[..31]));
        assert!(!secret.seal("from the host", &handshake).check(b"head", b"body", &first));
        let mut other = handshake;
        other[63] ^= 1;
        assert!(!secret.seal("from the caller", &other).check(b"head", b"body", &first));
        let another = Secret::new(Some("sixteen letters?".into())).unwrap();
        assert!(!another.seal("from the caller", &handshake).check(b"head", b"body", &first));
    }

    #[test]
    fn a_secret_is_long_and_never_shown() {
        let error = Secret::new(Some("short".into())).unwrap_err().to_string();
        assert!(error.contains("openssl rand -hex 32") && !error.contains("short"), "{error}");
        let secret = Secret::new(Some("do not show me to anyone".into())).unwrap();
        assert!(!format!("{secret:?}").contains("show me"));
        assert!(!Secret::new(Some(String::new())).unwrap().is_set());
    }
}
