//! The front: the socket that managers reach, before the SNMP engine.
//!
//! The engine takes passphrases, and keeps them while it runs; a key that was changed by `usmUserTable` has no passphrase. So the engine
//! has, for each user, a secret of this start alone, on an address of this host alone, and the front changes seals: a message that bears a
//! user's key is sealed anew with that user's secret, and its answer with the key that the request bore. Messages of SNMP's other versions
//! are counted here; every other one goes on as it came, and is counted and refused by the engine. Nothing is decided here: engine id, time
//! window, access and size stay the engine's. Each user has a secret of its own, so that who is one user to the front can never be another
//! to the engine, whatever a message looks like.
//!
//! ```text
//! manager ---- user's key ----> front ---- user's secret, loopback ----> engine
//! ```

use std::{
    collections::BTreeMap,
    io,
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_snmp::v3::SaltCounter;
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use tokio::{io::Interest, net::UdpSocket, task::JoinSet};

use super::{
    keys::Keys,
    seal::{Outside, Seal, version},
};

/// Largest datagram, bytes.
const DATAGRAM_BYTES: usize = 65_536;
/// Room for an answer, bytes; the engine's are smaller ([`patchlab_protocol::limits::PDU_BYTES`]).
const ANSWER_BYTES: usize = 2048;
/// Requests with a user's seal that can wait for their answers.
const KNOWN: usize = 16;
/// Messages of anybody that can. They have lines of their own: who floods them takes none from who has a key.
const STRANGERS: usize = 8;
/// How often receiving may fail in a row.
const FAILURES: u32 = 20;
/// The version of SNMPv3 messages (RFC 3412, 6.1).
const VERSION_3: i32 = 3;
/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(50);

/// Who waits for an answer, and how it is to be sealed.
struct Waiting {
    manager: SocketAddr,
    /// The address of this host that the manager sent to: the answer comes from there.
    asked: Option<IpAddr>,
    /// `msgID`; `None` of what is no SNMPv3 message, and gets no answer.
    id: Option<i32>,
    /// The user's key, and its secret inside.
    seals: Option<(Arc<Seal>, Arc<Seal>)>,
}

/// A way to the engine for one request at a time. A newer one takes the place of one that was not answered.
struct Line {
    socket: UdpSocket,
    waiting: Mutex<Option<Waiting>>,
}

/// What seals each user's messages between front and engine.
pub type Secrets = BTreeMap<Vec<u8>, Arc<Seal>>;

/// The socket that managers reach.
pub struct Front {
    socket: UdpSocket,
    state: UdpSocketState,
    keys: Arc<Keys>,
    secrets: Secrets,
    salts: SaltCounter,
    lines: Vec<Line>,
    next: [AtomicUsize; 2],
    /// `snmpEngineID` of the engine.
    engine_id: Vec<u8>,
    bad_versions: Arc<AtomicU32>,
    below_level: Arc<AtomicU32>,
}

impl Front {
    /// Before the engine that is there, has this id and knows users by these secrets; managers reach `socket`. Nothing is answered yet.
    ///
    /// # Errors
    /// When there are no sockets.
    pub async fn before(
        (engine, engine_id): (SocketAddr, Vec<u8>),
        socket: UdpSocket,
        secrets: Secrets,
        keys: Arc<Keys>,
    ) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let mut lines = Vec::new();
        for _ in 0..KNOWN + STRANGERS {
            let socket = UdpSocket::bind((engine.ip(), 0)).await?;
            // From nobody else is anything taken on it.
            socket.connect(engine).await?;
            lines.push(Line { socket, waiting: Mutex::new(None) });
        }
        let salts = SaltCounter::new().map_err(io::Error::other)?;
        let next = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let [bad_versions, below_level] = [Arc::default(), Arc::default()];
        Ok(Self { socket, state, keys, secrets, salts, lines, next, engine_id, bad_versions, below_level })
    }

    /// The address that managers reach.
    ///
    /// # Errors
    /// When the socket does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// How many messages of other versions came: `snmpInBadVersions`. The engine counts none, as it takes one version only.
    pub fn bad_versions(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.bad_versions)
    }

    /// How many messages came by users of this host without what all of them are for, authentication and privacy: a part of
    /// `usmStatsUnsupportedSecLevels`. The engine counts none, since it could speak less with them, and lets access control say no.
    pub fn below_level(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.below_level)
    }

    /// Passes messages on, for ever.
    ///
    /// # Errors
    /// When nothing can be received any more.
    pub async fn run(self: Arc<Self>) -> io::Result<()> {
        let mut answers = JoinSet::new();
        for line in 0..self.lines.len() {
            answers.spawn(Arc::clone(&self).answer(line));
        }
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let mut failures = 0;
        loop {
            match self.receive(&mut buffer).await {
                Ok(meta) => {
                    failures = 0;
                    // The kernel may join datagrams of one sender.
                    let stride = meta.stride.max(1);
                    buffer[..meta.len].chunks_mut(stride).for_each(|datagram| self.pass(datagram, &meta));
                }
                Err(error) if failures == FAILURES => return Err(error),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "receiving SNMP messages failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<RecvMeta> {
        let mut meta = [RecvMeta::default()];
        let receive = || self.state.recv(UdpSockRef::from(&self.socket), &mut [IoSliceMut::new(buffer)], &mut meta);
        self.socket.async_io(Interest::READABLE, receive).await?;
        let [meta] = meta;
        Ok(meta)
    }

    /// Passes a message on to the engine.
    fn pass(&self, datagram: &mut [u8], meta: &RecvMeta) {
        // RFC 3412, 7.2, step 2: counted, and no more.
        if version(datagram).is_some_and(|version| version != VERSION_3) {
            self.bad_versions.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let outside = Outside::of(datagram);
        // RFC 3414, 3.2, step 5: after engine and user are known, before the seal is looked at.
        let below = |outside: &Outside| {
            outside.is_below_auth_priv() && outside.engine == self.engine_id && self.keys.seal(&outside.user).is_some()
        };
        if outside.as_ref().is_some_and(below) {
            self.below_level.fetch_add(1, Ordering::Relaxed);
        }
        let seals = outside.as_ref().filter(|outside| outside.is_sealed()).and_then(|outside| {
            let (key, secret) = (self.keys.seal(&outside.user)?, self.secrets.get(&outside.user)?);
            outside.reseal(datagram, &key, secret, &self.salts)?;
            Some((key, Arc::clone(secret)))
        });
        let (lines, next) = match seals {
            Some(_) => (&self.lines[..KNOWN], &self.next[0]),
            None => (&self.lines[KNOWN..], &self.next[1]),
        };
        let line = &lines[next.fetch_add(1, Ordering::Relaxed) % lines.len()];
        let id = outside.map(|outside| outside.id);
        let waiting = Waiting { manager: meta.addr, asked: meta.dst_ip.filter(is_of_one), id, seals };
        *line.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting);
        // A message that finds no room is lost, as on any way of UDP: managers ask again.
        if let Err(error) = line.socket.try_send(datagram) {
            tracing::debug!(%error, "an SNMP message did not reach the engine");
        }
    }

    /// Passes the engine's answers on one line back, for ever.
    async fn answer(self: Arc<Self>, line: usize) {
        let mut buffer = [0; ANSWER_BYTES];
        let line = &self.lines[line];
        loop {
            let Ok(length) = line.socket.recv(&mut buffer).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let answer = &mut buffer[..length];
            let Some(outside) = Outside::of(answer) else { continue };
            let waiting = {
                let mut waiting = line.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.take_if(|waiting| waiting.id == Some(outside.id))
            };
            let Some(waiting) = waiting else { continue };
            if outside.is_sealed() {
                let seals = waiting.seals.as_ref();
                let sealed = seals.and_then(|(key, secret)| outside.reseal(answer, secret, key, &self.salts));
                if sealed.is_none() {
                    continue;
                }
            }
            if let Err(error) = self.send(answer, &waiting).await {
                tracing::debug!(%error, manager = %waiting.manager, "an SNMP answer could not be sent");
            }
        }
    }

    async fn send(&self, answer: &[u8], to: &Waiting) -> io::Result<()> {
        match self.send_from(to.asked, answer, to.manager).await {
            // A network's broadcast address is no host's either, and looks as if it were.
            Err(_) if to.asked.is_some() => self.send_from(None, answer, to.manager).await,
            sent => sent,
        }
    }

    async fn send_from(&self, src_ip: Option<IpAddr>, contents: &[u8], destination: SocketAddr) -> io::Result<()> {
        let transmit = Transmit { destination, ecn: None, contents, segment_size: None, src_ip };
        let send = || self.state.try_send(UdpSockRef::from(&self.socket), &transmit);
        self.socket.async_io(Interest::WRITABLE, send).await
    }
}

/// Whether an address is one host's: from others nothing can be sent.
fn is_of_one(address: &IpAddr) -> bool {
    !address.is_multicast() && *address != IpAddr::V4(Ipv4Addr::BROADCAST)
}
