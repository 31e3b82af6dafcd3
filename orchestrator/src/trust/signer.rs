//! The release signer: a process of its own that alone reads the release key.
//!
//! The server starts it as `patchlab signer` with the *path* of the key and of the root document, and talks with it in JSON
//! lines over its standard input and output: a [`Request`] in, an [`Answer`] out. The signer asks the gate itself: it signs
//! nothing but the release that a passing verdict over that very order carries, or one with waivers of all that it lacks, whatever the server
//! says.

use std::{
    io::{self, BufRead, Read as _, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use jiff::Timestamp;
use patchlab_lab::report::{REPORT_BYTES, Report};
use patchlab_protocol::{
    Audience, Envelope, Refusal, Refused, Role, SigningKey, document::Root, key::KeyError, limits,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
};

use super::root::{self, RootFileError};
use crate::gate;

/// Longest request line, bytes: an order and a verdict (escaped once), and an order's waivers.
const REQUEST_BYTES: u64 =
    2 * (REPORT_BYTES as u64 + limits::DOCUMENT_BYTES) + (WAIVERS_PER_REQUEST * limits::WAIVER_BYTES) as u64;
/// Most waivers that come with a request: of those that an order has, the newest.
pub const WAIVERS_PER_REQUEST: usize = 4 * limits::WAIVERS_PER_RELEASE;
/// How long the server waits for an answer: a signature takes microseconds, a large verdict some milliseconds to read.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The order.
    pub order: Envelope,
    /// The verdict JSON, as the lab wrote it.
    pub verdict: String,
    /// Waivers of what it found, of which those that are needed are taken.
    #[serde(default)]
    pub waivers: Vec<Envelope>,
}

/// What the signer says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The signed release.
    Released(Box<Envelope>),
    /// No, by name.
    Refused {
        /// Which.
        refusal: Refusal,
        /// For people.
        reason: String,
    },
}

/// The signer could not be started, or died.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The root document.
    #[error(transparent)]
    Root(#[from] RootFileError),
    /// The key may not release.
    #[error(
        "the key in {0} may not sign releases under the root document in force: name it with root init --release-key"
    )]
    NotAReleaser(PathBuf),
    /// It did not come up, or its pipe broke.
    #[error("release signer: {action}: {source}")]
    Pipe {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("release signer: no answer within {} s; it was stopped", PATIENCE.as_secs())]
    Silent,
    /// It answered with something else.
    #[error("release signer: its answer makes no sense: {0}")]
    Nonsense(String),
    /// There is none.
    #[error("this server has no release signer: start it with patchlab serve --release-key FILE")]
    Absent,
}

fn pipe(action: &'static str) -> impl FnOnce(io::Error) -> SignerError {
    move |source| SignerError::Pipe { action, source }
}

/// Decides and signs: the whole of the signer, pure but for the clock passed in.
pub fn answer(key: &SigningKey, root: &Root, request: &Request, now: Timestamp) -> Answer {
    let refused = |refused: Refused| Answer::Refused { refusal: refused.refusal, reason: refused.reason };
    let verdict = match Report::from_json(request.verdict.as_bytes()) {
        Ok(verdict) => verdict,
        Err(error) => return refused(Refused::new(Refusal::NotReleased, error.to_string())),
    };
    // What was revoked is the server's to know, and every host's.
    match gate::release(root, &request.order, Some(&verdict), &request.waivers, &[], now) {
        Ok(release) => Answer::Released(Box::new(Envelope::sign(release, key))),
        Err(no) => refused(no),
    }
}

/// The signer process: answers until its input ends, which it does when the server dies.
pub fn run(key: &Path, root: &Path, mut input: impl BufRead, mut output: impl Write) -> Result<(), SignerError> {
    let root = root::read(root)?.root;
    let signing = SigningKey::read(key)?;
    let public = signing.public();
    if root.audience != Audience::Production || !root.keys(Role::Releaser).any(|known| *known == public) {
        return Err(SignerError::NotAReleaser(key.to_owned()));
    }
    writeln!(output, "{}", public.id()).and_then(|()| output.flush()).map_err(pipe("say hello"))?;
    loop {
        let mut line = Vec::new();
        let read = input.by_ref().take(REQUEST_BYTES).read_until(b'\n', &mut line).map_err(pipe("read"))?;
        if read == 0 {
            return Ok(());
        }
        let said = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => answer(&signing, &root, &request, Timestamp::now()),
            Err(error) => Answer::Refused {
                refusal: Refusal::NotReleased,
                reason: format!("the signer cannot read its request: {error}"),
            },
        };
        let text = serde_json::to_string(&said).map_err(|error| SignerError::Nonsense(error.to_string()))?;
        writeln!(output, "{text}").and_then(|()| output.flush()).map_err(pipe("answer"))?;
    }
}

/// The server's end of the signer.
#[derive(Debug)]
pub struct Signer {
    channel: Mutex<Option<Channel>>,
    key: PathBuf,
    root: PathBuf,
    program: PathBuf,
    public: String,
}

#[derive(Debug)]
struct Channel {
    // Killed when dropped.
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Signer {
    /// Starts the signer and waits until it has its key.
    pub async fn start(program: PathBuf, key: PathBuf, root: PathBuf) -> Result<Self, SignerError> {
        let (channel, public) = spawn(&program, &key, &root).await?;
        Ok(Self { channel: Mutex::new(Some(channel)), key, root, program, public })
    }

    /// The name of its key.
    pub fn key(&self) -> &str {
        &self.public
    }

    /// Has it read the root documents anew, before the next release.
    pub async fn renew(&self) {
        self.channel.lock().await.take();
    }

    /// Asks for a release. A signer that died is started again, once.
    pub async fn release(&self, request: &Request) -> Result<Answer, SignerError> {
        let mut slot = self.channel.lock().await;
        let mut channel = match slot.take() {
            Some(channel) => channel,
            None => spawn(&self.program, &self.key, &self.root).await?.0,
        };
        let line = serde_json::to_string(request).map_err(|error| SignerError::Nonsense(error.to_string()))?;
        // The channel goes back only after a whole answer: a half-read one would answer the next request.
        let answer =
            tokio::time::timeout(PATIENCE, exchange(&mut channel, &line)).await.map_err(|_| SignerError::Silent)??;
        *slot = Some(channel);
        serde_json::from_str(&answer).map_err(|error| SignerError::Nonsense(error.to_string()))
    }
}

async fn spawn(program: &Path, key: &Path, root: &Path) -> Result<(Channel, String), SignerError> {
    let mut child = Command::new(program)
        .arg("signer")
        .arg("--key")
        .arg(key)
        .arg("--root")
        .arg(root)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(pipe("start"))?;
    let closed = || pipe("start")(io::Error::from(io::ErrorKind::BrokenPipe));
    let input = child.stdin.take().ok_or_else(closed)?;
    let output = BufReader::new(child.stdout.take().ok_or_else(closed)?);
    let mut channel = Channel { _child: child, input, output };
    let mut hello = String::new();
    let read = tokio::time::timeout(PATIENCE, channel.output.read_line(&mut hello))
        .await
        .map_err(|_| SignerError::Silent)?
        .map_err(pipe("start"))?;
    if read == 0 {
        return Err(pipe("start; it said why on standard error")(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok((channel, hello.trim().to_owned()))
}

async fn exchange(channel: &mut Channel, line: &str) -> Result<String, SignerError> {
    channel.input.write_all(line.as_bytes()).await.map_err(pipe("ask"))?;
    channel.input.write_all(b"\n").await.map_err(pipe("ask"))?;
    channel.input.flush().await.map_err(pipe("ask"))?;
    let mut answer = String::new();
    match channel.output.read_line(&mut answer).await.map_err(pipe("listen"))? {
        0 => Err(pipe("listen")(io::ErrorKind::UnexpectedEof.into())),
        _ => Ok(answer),
    }
}
