//! A clone in a worker of its own, as a validation has one, with the lab's payload server beside it: where its guest
//! gets through to, and where its worker does. Both sides of it.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use patchlab::payload::{self, InMemory};
use patchlab_check::Target as _;
use patchlab_lab::{
    ArtifactStore, Lab, LabHost, Machine, Places,
    baseline::Baselines,
    machine::{CloneSpec, Forward, Protocol},
    worker::{self, Inside, Launcher, Network, Receiver, Worker},
};
use serde::{Deserialize, Serialize};

/// How long a connection may take; under emulation, and beside others, a guest's own start of a program is a good part
/// of it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer to what was sent once may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// Where [`KNOCK`] is in a guest.
const KNOCK_FILE: &str = "/run/knock.pl";
/// Knocks at all places at once, and prints the answers' words. Arguments: seconds to wait, then a word `KIND,ADDRESS,PORT` each.
const KNOCK: &str = r#"
use strict; use warnings; use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6);
my $wait = shift; my %open; my $sequence = 0;
sub sum { my $sum = 0; $sum += $_ for unpack "n*", $_[0]; $sum = ($sum >> 16) + ($sum & 0xffff) while $sum >> 16; ~$sum & 0xffff }
for my $word (@ARGV) {
    my ($kind, $host, $port) = split /,/, $word;
    my $family = $host =~ /:/ ? AF_INET6 : AF_INET;
    my $address = inet_pton($family, $host) // die "$host is no address\n";
    my $to = $family == AF_INET ? pack_sockaddr_in($port, $address) : pack_sockaddr_in6($port, $address);
    my $datagram = $kind eq "udp";
    my ($type, $protocol) = $datagram ? (SOCK_DGRAM, 17) : (SOCK_RAW, 1);
    socket(my $socket, $family, $type, $protocol) or die "socket: $!\n";
    # Without a way there, it is not sent: that is no answer.
    connect($socket, $to) or next;
    my $said = $datagram ? "knock" : pack("C C n n n", 8, 0, 0, $$ & 0xffff, ++$sequence);
    substr($said, 2, 2) = pack("n", sum($said)) unless $datagram;
    defined send($socket, $said, 0) or next;
    $open{$word} = [$socket, $datagram];
}
my $end = time + $wait;
while (%open && time < $end) {
    my $bits = ""; vec($bits, fileno($_->[0]), 1) = 1 for values %open;
    select(my $ready = $bits, undef, undef, 0.5) or next;
    for my $word (keys %open) {
        my ($socket, $datagram) = @{$open{$word}};
        next unless vec($ready, fileno($socket), 1);
        # "Refused" is one's own kernel's word, or somebody's that there is nothing: no answer.
        my $got;
        unless (defined recv($socket, $got, 1500, 0)) { delete $open{$word}; next }
        # Of a raw socket it comes with its IP header, and one's own requests come by, too.
        next if !$datagram && unpack("C", substr($got, 4 * (ord($got) & 15), 1)) != 0;
        print "$word\n"; delete $open{$word};
    }
}
"#;
/// The guest's web server.
const GUEST_PORT: u16 = 80;

/// Ports on a worker's loopback. Two workers must not share one: a guest would find its own worker's.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Ports {
    /// The payload server's.
    pub payload: u16,
    /// Leads to the guest's web server.
    pub forward: u16,
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum From {
    /// The machine.
    Guest,
    /// Its worker.
    Worker,
}

/// What is sent once, and may be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Knock {
    /// A datagram.
    Udp(SocketAddr),
    /// An echo request (RFC 792); over IPv4.
    Echo(Ipv4Addr),
}

/// What the worker is told.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Clone { baseline: String, ports: Ports },
    Connect { from: From, host: String, port: u16, request: String },
    Knock(Vec<Knock>),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Running,
    /// What came back; `None` when there was no connection.
    Answer(Option<String>),
    Answered(Vec<Knock>),
    Failed(String),
}

/// A clone in a worker of its own. Dropping it ends both.
pub struct Isolated {
    worker: Worker,
    receiver: Receiver,
    /// Where its worker listens.
    pub ports: Ports,
}

impl Isolated {
    /// Clones `baseline` on a host, in a worker that `launcher` starts; its program's first act is [`serve`].
    pub fn start(
        host: &LabHost,
        places: &Places,
        launcher: &Launcher,
        baseline: &str,
        ports: Ports,
    ) -> anyhow::Result<Self> {
        let mut worker = worker::spawn(host, places, launcher, &Network::Isolated)?;
        let receiver = worker.take_receiver().context("the worker's channel was taken")?;
        let mut isolated = Self { worker, receiver, ports };
        match isolated.ask(&Ask::Clone { baseline: baseline.to_owned(), ports })? {
            Tell::Running => Ok(isolated),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// What comes back from there; `None` when there is no connection.
    pub fn connect(&mut self, from: From, host: &str, port: u16, request: &str) -> anyhow::Result<Option<String>> {
        let (host, request) = (host.to_owned(), request.to_owned());
        match self.ask(&Ask::Connect { from, host, port, request })? {
            Tell::Answer(answer) => Ok(answer),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Those of the guest's knocks that are answered within [`ANSWER_TIMEOUT`].
    pub fn knock(&mut self, knocks: &[Knock]) -> anyhow::Result<Vec<Knock>> {
        match self.ask(&Ask::Knock(knocks.to_vec()))? {
            Tell::Answered(answered) => Ok(answered),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    fn ask(&mut self, ask: &Ask) -> anyhow::Result<Tell> {
        self.worker.sender().send(ask)?;
        match self.receiver.receive::<Tell>()?.context("the worker ended without a word")? {
            Tell::Failed(reason) => bail!("{reason}"),
            tell => Ok(tell),
        }
    }
}

/// Becomes a worker and does what it is told.
pub fn serve() -> ExitCode {
    let inside = match worker::enter() {
        Ok(inside) => inside,
        Err(code) => return code,
    };
    match answer_all(inside) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer_all(mut inside: Inside) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut running: Option<(Machine, Lab)> = None;
    while let Some(ask) = inside.receiver.receive::<Ask>()? {
        let told = match (ask, &running) {
            (Ask::Clone { baseline, ports }, _) => clone(&inside, &runtime, &baseline, ports).map(|made| {
                running = Some(made);
                Tell::Running
            }),
            (Ask::Connect { from: From::Guest, host, port, request }, Some((machine, _))) => machine
                .guest()
                .connect(&host, port, request.as_bytes(), CONNECT_TIMEOUT)
                .map(|answer| Tell::Answer(answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())))
                .map_err(Into::into),
            (Ask::Connect { from: From::Worker, host, port, request }, _) => {
                Ok(Tell::Answer(exchange(&host, port, &request).ok()))
            }
            (Ask::Knock(knocks), Some((machine, _))) => knock(machine, &knocks).map(Tell::Answered),
            (Ask::Connect { from: From::Guest, .. } | Ask::Knock(_), None) => {
                Err(anyhow::anyhow!("there is no guest yet"))
            }
        };
        inside.sender.send(&told.unwrap_or_else(|error| Tell::Failed(format!("{error:#}"))))?;
    }
    Ok(())
}

fn clone(
    inside: &Inside,
    runtime: &tokio::runtime::Runtime,
    baseline: &str,
    ports: Ports,
) -> anyhow::Result<(Machine, Lab)> {
    let router = payload::router(Arc::new(InMemory::new([], ArtifactStore::open(&inside.places.artifacts)?)));
    let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, ports.payload)))?;
    runtime.spawn(async move { axum::serve(listener, router).await });
    // Beside it, what answers datagrams: so that a guest which gets no answer is known to have asked.
    let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, ports.payload))?;
    std::thread::spawn(move || echo(&datagrams, || ()));
    let baseline = Baselines::open(&inside.places).get(baseline)?;
    let lab = Lab::open(&inside.places, &inside.driver)?;
    let host = SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports.forward);
    let forwards = vec![Forward { protocol: Protocol::Tcp, host, guest_port: GUEST_PORT }];
    let machine = lab.clone_baseline(&baseline, &CloneSpec { name: "isolated".into(), tools: None, forwards })?;
    Ok((machine, lab))
}

/// Sends all knocks from a guest, and waits for answers.
fn knock(machine: &Machine, knocks: &[Knock]) -> anyhow::Result<Vec<Knock>> {
    let words = knocks.iter().map(|knock| match knock {
        Knock::Udp(to) => format!("udp,{},{}", to.ip(), to.port()),
        Knock::Echo(to) => format!("echo,{to},0"),
    });
    let words: Vec<String> = words.collect();
    machine.guest().put_file(KNOCK_FILE, KNOCK.as_bytes(), 0o600)?;
    let command = format!("perl {KNOCK_FILE} {} {}", ANSWER_TIMEOUT.as_secs(), words.join(" "));
    let ran = machine.guest().run(&command, None, CONNECT_TIMEOUT + ANSWER_TIMEOUT)?;
    if ran.exit != Some(0) {
        bail!("{command}: exit {:?}: {}", ran.exit, ran.stderr.trim());
    }
    let answered = |(word, _): &(&String, &Knock)| ran.stdout.lines().any(|line| line == *word);
    Ok(words.iter().zip(knocks).filter(answered).map(|(_, knock)| knock.clone()).collect())
}

/// Answers datagrams for ever, and says each time that one came.
pub fn echo(socket: &UdpSocket, came: impl Fn()) {
    let mut bytes = [0; 64];
    while let Ok((count, from)) = socket.recv_from(&mut bytes) {
        came();
        // Who does not hear it asked for nothing.
        let _ = socket.send_to(&bytes[..count], from);
    }
}

/// Sends a request from here and reads the answer to its end.
pub fn exchange(host: &str, port: u16, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((host, port))?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
