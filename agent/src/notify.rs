//! What systemd is told: that the agent is ready, and, when it watches, that the agent still answers. sd_notify(3),
//! without its library.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// The socket that systemd named, if the agent was started by it.
#[derive(Debug)]
pub struct Systemd {
    socket: UnixDatagram,
    to: SocketAddr,
    watched: Option<Duration>,
}

impl Systemd {
    /// As the environment says; `None` when nobody wants to know.
    ///
    /// # Errors
    /// When the socket that it names is none.
    pub fn from_environment() -> io::Result<Option<Self>> {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
        let for_us = env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let every = env::var("WATCHDOG_USEC").ok().filter(|_| for_us).and_then(|text| text.parse().ok());
        Self::new(&name, every.map(Duration::from_micros)).map(Some)
    }

    fn new(name: &OsStr, watched: Option<Duration>) -> io::Result<Self> {
        let to = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        Ok(Self { socket: UnixDatagram::unbound()?, to, watched })
    }

    /// Tells one or more lines, `NAME=VALUE`.
    ///
    /// # Errors
    /// When nobody takes them.
    pub fn tell(&self, lines: &str) -> io::Result<()> {
        self.socket.send_to_addr(lines.as_bytes(), &self.to).map(drop)
    }

    /// For ever: says that the agent still answers, as often as it is watched, each time `alive` has returned.
    pub async fn watch(&self, alive: impl Fn()) {
        let Some(every) = self.watched else { return std::future::pending().await };
        let mut ticks = tokio::time::interval(every / 2);
        loop {
            ticks.tick().await;
            alive();
            if let Err(error) = self.tell("WATCHDOG=1") {
                tracing::warn!(%error, "systemd does not listen");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let name = format!("patchlab-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let receivers = [UnixDatagram::bind(&path).unwrap(), UnixDatagram::bind_addr(&abstract_address).unwrap()];
        for (receiver, name) in receivers.iter().zip([path.display().to_string(), format!("@{name}")]) {
            Systemd::new(OsStr::new(&name), None).unwrap().tell("READY=1").unwrap();
            let mut buffer = [0; 100];
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
    }

    #[tokio::test]
    async fn a_watched_agent_says_that_it_answers_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let receiver = UnixDatagram::bind(&path).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let systemd = Systemd::new(path.as_os_str(), Some(Duration::from_millis(20))).unwrap();
        let task = tokio::spawn(async move { systemd.watch(|| {}).await });
        let heard = tokio::task::spawn_blocking(move || {
            let mut buffer = [0; 100];
            (0..3)
                .map(|_| receiver.recv(&mut buffer).map(|length| buffer[..length].to_vec()).unwrap())
                .collect::<Vec<_>>()
        });
        assert_eq!(heard.await.unwrap(), [b"WATCHDOG=1"; 3]);
        task.abort();
    }
}
