//! Asking a machine whether a step's expectations hold.

use std::time::{Duration, Instant};

use super::{Expect, File, Http, Installed, Kind, Outcome, Package, Port, Protocol, Status, Step, Tcp, Unit, http};
use crate::target::{Ended, Ran, Target, TargetError};

/// Exit status by which a command says that it does not apply here.
const SKIP: i32 = 77;
/// Time a step gets when it says nothing: generous, since the lab may run under software emulation.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of output kept in an outcome: 16 KiB, from both ends.
const OUTPUT_KEPT: usize = 16 * 1024;
/// Largest file looked into: 16 MiB.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// How long between two looks at a unit on its way. systemd has no call that waits for a state.
const UNIT_POLL: Duration = Duration::from_millis(250);

/// Where and for how long a step runs.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The scenario's folder on the machine; `None` where there is none, as on a production host.
    pub dir: Option<&'a str>,
    /// What is left of the scenario's budget.
    pub budget: Duration,
}

/// What was seen and what follows from it.
struct Seen {
    status: Status,
    exit: Option<i32>,
    output: String,
    reason: String,
}

impl Seen {
    fn pass(output: impl Into<String>) -> Self {
        Self { status: Status::Pass, exit: None, output: output.into(), reason: String::new() }
    }

    fn fail(output: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { status: Status::Fail, exit: None, output: output.into(), reason: reason.into() }
    }

    /// Pass when nothing speaks against it.
    fn unless(output: impl Into<String>, reason: Option<String>) -> Self {
        match reason {
            None => Self::pass(output),
            Some(reason) => Self::fail(output, reason),
        }
    }
}

impl Step {
    /// Does the step on `target` and says how it ended. "The test said no" is an [`Outcome`].
    ///
    /// # Errors
    /// The machine or the way to it broke, which says nothing about the step.
    pub fn evaluate(&self, target: &dyn Target, context: Context<'_>) -> Result<Outcome, TargetError> {
        let timeout = self.timeout.map_or(DEFAULT_TIMEOUT, |span| span.0).min(context.budget);
        let start = Instant::now();
        let seen = match &self.kind {
            Kind::Run { command, expect, .. } => run(target, command, expect, context.dir, timeout)?,
            Kind::Http(http) => request(target, http, timeout)?,
            Kind::Tcp(tcp) => connect(target, tcp, timeout)?,
            Kind::Unit(unit) => look_at_unit(target, unit, timeout)?,
            Kind::File(file) => look_at_file(target, file)?,
            Kind::Package(package) => look_at_package(target, package, timeout)?,
            Kind::Port(port) => look_at_port(target, port, timeout)?,
        };
        let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Outcome { status: seen.status, exit: seen.exit, ms, output: shortened(seen.output), reason: seen.reason })
    }
}

fn run(
    target: &dyn Target,
    command: &str,
    expect: &Expect,
    dir: Option<&str>,
    timeout: Duration,
) -> Result<Seen, TargetError> {
    let ran = target.run(command, dir, timeout)?;
    let output = both_streams(&ran);
    if ran.exit == Some(SKIP) && expect.exit != Some(SKIP) {
        let said = output.lines().last().unwrap_or_default();
        let reason = if said.is_empty() { "exit 77".to_owned() } else { format!("exit 77: {said}") };
        return Ok(Seen { status: Status::Skip, exit: ran.exit, output, reason });
    }
    let reason = unmet(expect, &ran, timeout);
    Ok(Seen { exit: ran.exit, ..Seen::unless(output, reason) })
}

/// The first expectation on a command that does not hold.
fn unmet(expect: &Expect, ran: &Ran, timeout: Duration) -> Option<String> {
    if ran.ended == Ended::ByTimeout {
        return Some(format!("it ran longer than {} s", timeout.as_secs_f32()));
    }
    let wanted = expect.exit.unwrap_or(0);
    match ran.exit {
        None => return Some(format!("it was killed by a signal, expected exit {wanted}")),
        Some(exit) if exit != wanted => return Some(format!("exit {exit}, expected {wanted}")),
        Some(_) => {}
    }
    let lacks = |stream: &str, text: &str, wanted: &Option<String>| {
        wanted
            .as_ref()
            .filter(|wanted| !text.contains(wanted.as_str()))
            .map(|wanted| format!("{stream} does not contain {wanted:?}"))
    };
    lacks("stdout", &ran.stdout, &expect.stdout_contains)
        .or_else(|| {
            let pattern = expect.stdout_matches.as_ref()?;
            (!pattern.is_match(&ran.stdout)).then(|| format!("stdout does not match {:?}", pattern.as_str()))
        })
        .or_else(|| lacks("stderr", &ran.stderr, &expect.stderr_contains))
}

fn both_streams(ran: &Ran) -> String {
    match (ran.stdout.trim_end(), ran.stderr.trim_end()) {
        (stdout, "") => stdout.to_owned(),
        ("", stderr) => stderr.to_owned(),
        (stdout, stderr) => format!("{stdout}\n{stderr}"),
    }
}

fn request(target: &dyn Target, step: &Http, timeout: Duration) -> Result<Seen, TargetError> {
    let url = &step.url;
    let Some(bytes) = target.connect(url.host(), url.port(), &http::request(url), timeout)? else {
        return Ok(Seen::fail("", format!("no connection to {}:{}", url.host(), url.port())));
    };
    let answer = match http::answer(&bytes) {
        Ok(answer) => answer,
        Err(reason) => return Ok(Seen::fail(String::from_utf8_lossy(&bytes), reason)),
    };
    let wanted = step.status.unwrap_or(200);
    let body = String::from_utf8_lossy(&answer.body);
    let reason = (answer.status != wanted)
        .then(|| format!("status {}, expected {wanted}", answer.status))
        .or_else(|| {
            step.headers.iter().find_map(|(name, value)| {
                let found: Vec<&str> = answer
                    .headers
                    .iter()
                    .filter(|(other, _)| other.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.as_str())
                    .collect();
                (!found.contains(&value.as_str()))
                    .then(|| format!("header {name}: expected {value:?}, found {}", found.join(", ")))
            })
        })
        .or_else(|| {
            let text = step.body_contains.as_ref().filter(|text| !body.contains(text.as_str()))?;
            let cut = if answer.end == http::End::Cut { " (it came cut short)" } else { "" };
            Some(format!("the body does not contain {text:?}{cut}"))
        });
    // The body is evidence only where it is not what was expected.
    let output = if reason.is_none() { answer.line } else { format!("{}\n{body}", answer.line) };
    Ok(Seen::unless(output, reason))
}

fn connect(target: &dyn Target, tcp: &Tcp, timeout: Duration) -> Result<Seen, TargetError> {
    let Tcp { host, port } = tcp;
    Ok(match target.connect(host, *port, &[], timeout)? {
        Some(_) => Seen::pass(format!("connected to {host}:{port}")),
        None => Seen::fail("", format!("no connection to {host}:{port}")),
    })
}

fn look_at_unit(target: &dyn Target, unit: &Unit, timeout: Duration) -> Result<Seen, TargetError> {
    let command = format!("systemctl show --property=LoadState,ActiveState,SubState,Result -- {}", unit.name);
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let ran = target.run(&command, None, left.max(Duration::from_secs(5)))?;
        if ran.exit != Some(0) {
            return Ok(Seen::fail(both_streams(&ran), format!("systemctl cannot say the state of {}", unit.name)));
        }
        let property = |name: &str| {
            ran.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
        };
        let (active, load) = (property("ActiveState"), property("LoadState"));
        let output = format!("{load}, {active} ({}), result {}", property("SubState"), property("Result"));
        if load == "not-found" {
            return Ok(Seen::fail(output, format!("there is no unit {}", unit.name)));
        }
        if active == unit.state {
            return Ok(Seen::pass(output));
        }
        let on_its_way = matches!(active, "activating" | "deactivating" | "reloading");
        if !on_its_way || left.is_zero() {
            return Ok(Seen::fail(output, format!("{} is {active}, expected {}", unit.name, unit.state)));
        }
        std::thread::sleep(UNIT_POLL.min(left));
    }
}

fn look_at_file(target: &dyn Target, file: &File) -> Result<Seen, TargetError> {
    let path = &file.path;
    let Some(content) = target.read(path.as_str(), FILE_BYTES + 1)? else {
        return Ok(Seen::fail("", format!("{path} does not exist")));
    };
    let wants_content = file.sha256.is_some() || file.contains.is_some();
    if wants_content && content.len() as u64 > FILE_BYTES {
        return Ok(Seen::fail("", format!("{path} is larger than {FILE_BYTES} bytes")));
    }
    let found = crate::Digest::of(&content);
    if let Some(wanted) = file.sha256.filter(|wanted| *wanted != found) {
        return Ok(Seen::fail(format!("sha256 {found}"), format!("{path} has digest {found}, expected {wanted}")));
    }
    let text = String::from_utf8_lossy(&content);
    match &file.contains {
        Some(wanted) if !text.contains(wanted.as_str()) => {
            Ok(Seen::fail(text, format!("{path} does not contain {wanted:?}")))
        }
        _ => Ok(Seen::pass(format!("{path}, {} bytes", content.len()))),
    }
}

fn look_at_package(target: &dyn Target, package: &Package, timeout: Duration) -> Result<Seen, TargetError> {
    let name = &package.name;
    let command = format!(
        "if command -v dpkg-query >/dev/null; then dpkg-query -W -f='${{db:Status-Status}} ${{Version}}\\n' {name}; \
         else rpm -q --qf 'installed %{{EVR}}\\n' {name}; fi"
    );
    let ran = target.run(&command, None, timeout)?;
    let found = ran.stdout.lines().next().filter(|_| ran.exit == Some(0)).and_then(|line| line.split_once(' '));
    let version = found.filter(|(status, _)| *status == "installed").map(|(_, version)| version);
    let reason = match (package.state, version, &package.version) {
        (Installed::Absent, Some(version), _) => Some(format!("{name} {version} is installed, expected absent")),
        (Installed::Absent, None, _) => None,
        (Installed::Installed, None, _) => Some(format!("{name} is not installed")),
        (Installed::Installed, Some(found), Some(wanted)) if found != wanted => {
            Some(format!("{name} is {found}, expected {wanted}"))
        }
        (Installed::Installed, Some(_), _) => None,
    };
    Ok(Seen::unless(both_streams(&ran), reason))
}

fn look_at_port(target: &dyn Target, port: &Port, timeout: Duration) -> Result<Seen, TargetError> {
    // The kernel's own tables: no tool need be installed. States: 0A is LISTEN, 07 an unconnected UDP socket.
    let (protocol, state) = match port.protocol {
        Protocol::Tcp => ("tcp", "0A"),
        Protocol::Udp => ("udp", "07"),
    };
    let command = format!("cat /proc/net/{protocol}; cat /proc/net/{protocol}6 2>/dev/null || true");
    let ran = target.run(&command, None, timeout)?;
    let wanted = format!(":{:04X}", port.number);
    let listening = ran.stdout.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next().is_some_and(|local| local.ends_with(&wanted)) && columns.nth(1) == Some(state)
    });
    let reason = (!listening).then(|| format!("nothing listens on {protocol} port {}", port.number));
    Ok(Seen::unless(format!("{protocol} port {}", port.number), reason))
}

/// Both ends of a long output; the middle tells least.
fn shortened(output: String) -> String {
    if output.len() <= OUTPUT_KEPT {
        return output;
    }
    let head = output.floor_char_boundary(OUTPUT_KEPT / 4);
    let tail = output.ceil_char_boundary(output.len() - OUTPUT_KEPT * 3 / 4);
    format!("{}\n… {} bytes left out …\n{}", &output[..head], tail - head, &output[tail..])
}
