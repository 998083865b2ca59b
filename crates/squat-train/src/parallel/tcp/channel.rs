//! A connection whose two ends have proven that they belong together.

use super::secret::{Seal, Secret, TAG};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// First word of a caller, so that a stray connection is noticed at once. The digit is that of the protocol: raise it
/// whenever handshake, frames or collective operations change.
const GREETING: &[u8; 12] = b"squat-train2";

/// Longest message before the first frame. One names 4096 processes with their addresses in less.
pub(super) const MAX_MESSAGE: usize = 1 << 18;

/// A connection, and the seals of what goes out and what comes in.
pub(super) struct Channel {
    pub(super) stream: TcpStream,
    pub(super) outgoing: Seal,
    pub(super) incoming: Seal,
}

/// A stream on which everything must be done at a certain time.
struct Until<'a>(&'a TcpStream, Instant);

impl Until<'_> {
    fn left(&self) -> Result<Option<Duration>> {
        match self.1.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.0.set_read_timeout(self.left()?)?;
        self.0.read(buffer)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, buffer: &[u8]) -> Result<usize> {
        self.0.set_write_timeout(self.left()?)?;
        self.0.write(buffer)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn random() -> Result<[u8; TAG]> {
    let mut bytes = [0; TAG];
    getrandom::fill(&mut bytes).map_err(|error| Error::other(format!("no random numbers: {error}")))?;
    Ok(bytes)
}

fn refused(reason: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, reason)
}

fn handshake(host: [u8; TAG], caller: [u8; TAG]) -> [u8; 2 * TAG] {
    let mut both = [0; 2 * TAG];
    both[..TAG].copy_from_slice(&host);
    both[TAG..].copy_from_slice(&caller);
    both
}

const PROOF_OF_CALLER: &str = "proof of the caller";
const PROOF_OF_HOST: &str = "proof of the host";
const FROM_CALLER: &str = "from the caller";
const FROM_HOST: &str = "from the host";

impl Channel {
    /// The caller's side of the handshake.
    ///
    /// # Errors
    /// `PermissionDenied` where the host does not accept this process, or is none.
    pub(super) fn call(stream: TcpStream, secret: &Secret, until: Instant) -> Result<Self> {
        let mut timed = Until(&stream, until);
        let mut host = [0; TAG];
        timed.read_exact(&mut host)?;
        let caller = random()?;
        let both = handshake(host, caller);
        let mut words = Vec::with_capacity(GREETING.len() + 1 + 2 * TAG);
        words.extend_from_slice(GREETING);
        words.push(u8::from(secret.is_set()));
        words.extend_from_slice(&caller);
        words.extend_from_slice(&secret.proof(PROOF_OF_CALLER, &both));
        timed.write_all(&words)?;
        let mut proof = [0; TAG];
        timed.read_exact(&mut proof).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                refused("it hung up: it has another SQUAT_SECRET, or another version of this program")
            }
            _ => error,
        })?;
        if !secret.verify(PROOF_OF_HOST, &both, &proof) {
            return Err(refused("it does not know SQUAT_SECRET"));
        }
        Ok(Self {
            outgoing: secret.seal(FROM_CALLER, &both),
            incoming: secret.seal(FROM_HOST, &both),
            stream,
        })
    }

    /// The host's side. A visitor that proves nothing learns nothing.
    ///
    /// # Errors
    /// Whatever is not the greeting of a process that knows the secret.
    pub(super) fn answer(stream: TcpStream, secret: &Secret, until: Instant) -> Result<Self> {
        let mut timed = Until(&stream, until);
        let host = random()?;
        timed.write_all(&host)?;
        let mut greeting = [0; GREETING.len() + 1];
        timed.read_exact(&mut greeting)?;
        if greeting[..GREETING.len()] != *GREETING || greeting[GREETING.len()] != u8::from(secret.is_set()) {
            return Err(refused("not a greeting"));
        }
        let (mut caller, mut proof) = ([0; TAG], [0; TAG]);
        timed.read_exact(&mut caller)?;
        timed.read_exact(&mut proof)?;
        let both = handshake(host, caller);
        if !secret.verify(PROOF_OF_CALLER, &both, &proof) {
            return Err(refused("no proof"));
        }
        timed.write_all(&secret.proof(PROOF_OF_HOST, &both))?;
        Ok(Self {
            outgoing: secret.seal(FROM_HOST, &both),
            incoming: secret.seal(FROM_CALLER, &both),
            stream,
        })
    }

    /// Sends a message of the time before the first frame.
    pub(super) fn say<T: Serialize>(&mut self, message: &T, until: Instant) -> Result<()> {
        let text = serde_json::to_vec(message)?;
        let header = (text.len() as u32).to_le_bytes();
        let tag = self.outgoing.make(&header, &text);
        let mut whole = header.to_vec();
        whole.extend_from_slice(&text);
        whole.extend_from_slice(&tag[..self.outgoing.length()]);
        Until(&self.stream, until).write_all(&whole)
    }

    /// Receives one. Memory grows with what arrives, not with what is announced.
    pub(super) fn hear<T: DeserializeOwned>(&mut self, until: Instant) -> Result<T> {
        let mut timed = Until(&self.stream, until);
        let mut header = [0; 4];
        timed.read_exact(&mut header)?;
        let length = u32::from_le_bytes(header) as usize;
        if length > MAX_MESSAGE {
            return Err(ErrorKind::InvalidData.into());
        }
        let text = exactly(&mut timed, length)?;
        let mut tag = [0; TAG];
        let tag = &mut tag[..self.incoming.length()];
        timed.read_exact(tag)?;
        if !self.incoming.check(&header, &text, tag) {
            return Err(refused("a message without its seal"));
        }
        Ok(serde_json::from_slice(&text)?)
    }

    /// Whether the other end has proven that it knows a secret.
    pub(super) fn proven(&self) -> bool {
        self.incoming.length() > 0
    }
}

/// The next `length` bytes. Memory grows with what arrives, not with what is announced.
pub(super) fn exactly(from: &mut impl Read, length: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length.min(1 << 16));
    if from.take(length as u64).read_to_end(&mut bytes)? < length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}
