//! The terminal at which whoever runs this program sits, lent to a shell in a machine: raw, byte for byte, both ways.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
};

use patchlab_lab::machine::Tty;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, read, retry_on_intr},
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};

use crate::lab::shell::Carried;

/// Typed, it leaves a shell that does not end: Ctrl-], as in telnet(1) and virsh(1).
const LEAVE: u8 = 0x1d;
/// Bytes carried at once.
const CHUNK: usize = 16 * 1024;
/// How long what a shell wrote last may be on its way when it has ended.
const LAST_WORDS: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// What it is; `None` where nobody sits.
pub(super) fn here() -> Option<Tty> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return None;
    }
    let size = tcgetwinsize(io::stdout()).ok()?;
    // Of a size that nobody said, one of old.
    let said = |length: u16, of_old: u16| if length == 0 { of_old } else { length };
    let kind = std::env::var("TERM").ok().filter(|kind| is_a_kind(kind));
    Some(Tty {
        kind: kind.unwrap_or_else(|| "vt100".into()),
        rows: said(size.ws_row, 24),
        columns: said(size.ws_col, 80),
    })
}

/// A name as terminfo(5) has them.
fn is_a_kind(kind: &str) -> bool {
    !kind.is_empty() && kind.len() <= 64 && kind.chars().all(|c| c.is_ascii_alphanumeric() || "-+._".contains(c))
}

/// Standard input, raw as long as this lives.
struct Raw(Termios);

impl Raw {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Carries what is typed to a stream, and what comes from there to standard output, until `over` hangs up or somebody types [`LEAVE`].
pub(super) fn carry(stream: &UnixStream, over: BorrowedFd<'_>) -> io::Result<Carried> {
    let raw = Raw::begin()?;
    let carried = between(&io::stdin().as_fd(), stream, over);
    drop(raw);
    carried
}

/// The same of any input.
fn between(typed: &BorrowedFd<'_>, stream: &UnixStream, over: BorrowedFd<'_>) -> io::Result<Carried> {
    let mut bytes = vec![0; CHUNK];
    let mut is_typing = true;
    loop {
        let mut ready = vec![PollFd::new(stream, PollFlags::IN), PollFd::from_borrowed_fd(over, PollFlags::IN)];
        if is_typing {
            ready.push(PollFd::new(typed, PollFlags::IN));
        }
        retry_on_intr(|| poll(&mut ready, None))?;
        let is_ready: Vec<bool> = ready.iter().map(|one| !one.revents().is_empty()).collect();
        if is_ready.get(2) == Some(&true) {
            let count = match retry_on_intr(|| read(typed, &mut bytes)) {
                // Whoever typed is gone; what runs ends by itself, or by the signal that comes with that.
                Ok(0) | Err(Errno::IO) => {
                    is_typing = false;
                    continue;
                }
                count => count?,
            };
            let until = bytes[..count].iter().position(|byte| *byte == LEAVE);
            let mut writes = stream;
            // The other end may just have ended, which `over` will say.
            let _ = writes.write_all(&bytes[..until.unwrap_or(count)]);
            if until.is_some() {
                return Ok(Carried::UntilLeft);
            }
        }
        if is_ready[0] && show(stream, &mut bytes)? == 0 {
            // The emulator is gone: no more to be shown, and `over` says how it ended.
            retry_on_intr(|| poll(&mut [PollFd::from_borrowed_fd(over, PollFlags::IN)], None))?;
            return Ok(Carried::ToTheEnd);
        }
        if is_ready[1] && !is_ready[0] {
            // Both are told by different ways: the last words may come after the end.
            while retry_on_intr(|| poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&LAST_WORDS)))? > 0 {
                if show(stream, &mut bytes)? == 0 {
                    break;
                }
            }
            return Ok(Carried::ToTheEnd);
        }
    }
}

/// Shows what there is; how many bytes.
fn show(mut stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    let count = stream.read(bytes)?;
    let mut out = io::stdout().lock();
    out.write_all(&bytes[..count])?;
    out.flush()?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who goes first.
    #[derive(PartialEq)]
    enum Ends {
        Shell,
        Nobody,
    }

    /// What came to the stream's far end of what was typed, and how carrying ended.
    fn carried(typed: &[u8], who: Ends) -> (Vec<u8>, Carried) {
        let (mut typing, keyboard) = UnixStream::pair().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let (over, ends) = UnixStream::pair().unwrap();
        typing.write_all(typed).unwrap();
        let mut ends = Some(ends);
        if who == Ends::Shell {
            ends = None;
            // What is typed is carried before.
            drop(typing);
        }
        let how = between(&keyboard.as_fd(), &near, over.as_fd()).unwrap();
        drop((near, ends));
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        (got, how)
    }

    #[test]
    fn what_is_typed_is_carried_until_the_shell_ends_or_is_left() {
        assert_eq!(carried(b"ls\rexit\r", Ends::Shell), (b"ls\rexit\r".to_vec(), Carried::ToTheEnd));
        assert_eq!(carried(b"sleep 1d\r\x1dnot this", Ends::Nobody), (b"sleep 1d\r".to_vec(), Carried::UntilLeft));
    }

    #[test]
    fn kinds_are_names() {
        assert!(is_a_kind("xterm-256color") && is_a_kind("screen.xterm-new"));
        assert!(!is_a_kind("") && !is_a_kind("x;reboot") && !is_a_kind("$(id)"));
    }
}
