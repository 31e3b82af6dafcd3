//! JSON lines over a socket pair.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

/// The longest message, in bytes: 16 MiB.
const MESSAGE_LIMIT: u64 = 16 * 1024 * 1024;

/// The other side is gone or speaks another language.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket said no.
    #[error("channel between lab and worker: {0}")]
    Io(#[from] io::Error),
    /// A message is not what was expected.
    #[error("channel between lab and worker: unexpected message {text:?}")]
    Message {
        /// Its first bytes.
        text: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A message without end.
    #[error("channel between lab and worker: a message is longer than {MESSAGE_LIMIT} bytes")]
    TooLong,
}

/// Sends messages; clones share the socket, and a message is never torn.
#[derive(Debug, Clone)]
pub struct Sender(Arc<Mutex<UnixStream>>);

/// Receives messages.
#[derive(Debug)]
pub struct Receiver(BufReader<UnixStream>);

pub(super) fn pair(stream: UnixStream) -> Result<(Sender, Receiver), ChannelError> {
    let reading = stream.try_clone()?;
    Ok((Sender(Arc::new(Mutex::new(stream))), Receiver(BufReader::new(reading))))
}

impl Sender {
    /// Sends one message.
    pub fn send<M: Serialize>(&self, message: &M) -> Result<(), ChannelError> {
        let mut line = serde_json::to_vec(message).map_err(io::Error::from)?;
        line.push(b'\n');
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)?)
    }
}

impl Receiver {
    /// The next message; `None` when the other side is gone.
    pub fn receive<M: DeserializeOwned>(&mut self) -> Result<Option<M>, ChannelError> {
        let mut line = Vec::new();
        (&mut self.0).take(MESSAGE_LIMIT).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') {
            return if line.len() as u64 == MESSAGE_LIMIT { Err(ChannelError::TooLong) } else { Ok(None) };
        }
        serde_json::from_slice(&line).map(Some).map_err(|source| ChannelError::Message {
            text: String::from_utf8_lossy(&line).chars().take(200).collect(),
            source,
        })
    }

    /// How long [`Receiver::receive`] may wait; `None` waits for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ChannelError> {
        Ok(self.0.get_ref().set_read_timeout(timeout)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order_until_the_end() {
        let (left, right) = UnixStream::pair().unwrap();
        let (sender, _) = pair(left).unwrap();
        let (_keep, mut receiver) = pair(right).unwrap();
        sender.send(&vec![1, 2]).unwrap();
        sender.send(&"x\ny").unwrap();
        drop(sender);
        assert_eq!(receiver.receive::<Vec<u8>>().unwrap(), Some(vec![1, 2]));
        assert_eq!(receiver.receive::<String>().unwrap().as_deref(), Some("x\ny"));
    }

    #[test]
    fn another_language_is_an_error() {
        let (mut left, right) = UnixStream::pair().unwrap();
        left.write_all(b"hello\n").unwrap();
        let (_keep, mut receiver) = pair(right).unwrap();
        assert!(matches!(receiver.receive::<u8>(), Err(ChannelError::Message { .. })));
    }
}
