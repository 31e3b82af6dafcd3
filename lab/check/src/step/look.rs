//! Looking at a machine: what answers, what runs, what lies there, what is installed. Each look is one question and what follows.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    File, Http, Installed, Listening, Package, Port, Presence, Protocol, Tcp, Unit,
    evaluate::{Seen, both_streams},
    expect::Wanted,
    http,
    text::Pattern,
};
use crate::{
    PackageSystem,
    target::{Target, TargetError},
};

/// Largest file looked into for texts: 16 MiB.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// How long between two looks at a unit on its way. systemd has no call that waits for a state.
const UNIT_POLL: Duration = Duration::from_millis(250);

pub(super) fn at_answer(
    target: &dyn Target,
    step: &Http,
    timeout: Duration,
    redact: &[Pattern],
) -> Result<Seen, TargetError> {
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
    let cut = if answer.end == http::End::Cut { " (it came cut short)" } else { "" };
    let expected = Wanted {
        exactly: None,
        contains: step.body_contains.as_deref(),
        matches: step.body_matches.as_ref(),
        json: &step.body_json,
        redact,
    };
    let reason = (answer.status != wanted)
        .then(|| format!("status {}, expected {wanted}", answer.status))
        .or_else(|| step.headers.iter().find_map(|(name, value)| header_differs(&answer, name, value)))
        .or_else(|| expected.unmet("the body", &body).map(|reason| format!("{reason}{cut}")));
    // The body is evidence only where it is not what was expected.
    let output = if reason.is_none() { answer.line } else { format!("{}\n{body}", answer.line) };
    Ok(Seen::unless(output, reason))
}

fn header_differs(answer: &http::Answer, name: &str, value: &str) -> Option<String> {
    let same_name = |other: &&(String, String)| other.0.eq_ignore_ascii_case(name);
    let found: Vec<&str> = answer.headers.iter().filter(same_name).map(|(_, value)| value.as_str()).collect();
    (!found.contains(&value)).then(|| format!("header {name}: expected {value:?}, found {}", found.join(", ")))
}

pub(super) fn at_connection(target: &dyn Target, tcp: &Tcp, timeout: Duration) -> Result<Seen, TargetError> {
    let Tcp { host, port } = tcp;
    Ok(match target.connect(host, *port, &[], timeout)? {
        Some(_) => Seen::pass(format!("connected to {host}:{port}")),
        None => Seen::fail("", format!("no connection to {host}:{port}")),
    })
}

pub(super) fn at_unit(target: &dyn Target, unit: &Unit, timeout: Duration) -> Result<Seen, TargetError> {
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
            return Ok(Seen::hopeless(output, format!("there is no unit {}", unit.name)));
        }
        if active == unit.state {
            return Ok(Seen::pass(output));
        }
        if active == "failed" {
            return Ok(Seen::hopeless(output, format!("{} is failed, expected {}", unit.name, unit.state)));
        }
        if load == "masked" && unit.state == "active" {
            return Ok(Seen::hopeless(output, format!("{} is masked, expected active", unit.name)));
        }
        let on_its_way = matches!(active, "activating" | "deactivating" | "reloading");
        if !on_its_way || left.is_zero() {
            return Ok(Seen::fail(output, format!("{} is {active}, expected {}", unit.name, unit.state)));
        }
        std::thread::sleep(UNIT_POLL.min(left));
    }
}

pub(super) fn at_file(
    target: &dyn Target,
    file: &File,
    timeout: Duration,
    redact: &[Pattern],
) -> Result<Seen, TargetError> {
    let (path, quoted) = (&file.path, quoted(file.path.as_str()));
    if file.state == Presence::Absent {
        let command = format!("test ! -e {quoted} && test ! -L {quoted}");
        let gone = target.run(&command, None, timeout)?.exit == Some(0);
        return Ok(Seen::unless("", (!gone).then(|| format!("{path} exists, expected absent"))));
    }
    let ran = target.run(&format!("LC_ALL=C stat -L -c '%a %s %F' -- {quoted}"), None, timeout)?;
    let said = ran.stdout.trim_end();
    let mut parts = said.splitn(3, ' ');
    let (Some(mode), Some(_size), Some(sort)) = (parts.next(), parts.next(), parts.next()) else {
        let missing = ran.stderr.contains("No such file or directory") || ran.stderr.contains("Not a directory");
        let reason =
            if missing { "does not exist".to_owned() } else { format!("cannot be asked: {}", ran.stderr.trim()) };
        return Ok(Seen::fail(both_streams(&ran), format!("{path} {reason}")));
    };
    if let Some(wanted) = &file.mode
        && u32::from_str_radix(mode, 8) != Ok(wanted.bits())
    {
        return Ok(Seen::fail(said, format!("{path} has mode {mode}, expected {wanted}")));
    }
    let wants_content = file.sha256.is_some() || file.contains.is_some() || file.matches.is_some();
    if wants_content && !sort.starts_with("regular") {
        return Ok(Seen::fail(said, format!("{path} is a {sort}, expected a file with content")));
    }
    if let Some(wanted) = file.sha256 {
        // Read where it lies: a digest is shorter than what it stands for.
        let ran = target.run(&format!("sha256sum <{quoted}"), None, timeout)?;
        let found: Option<crate::Digest> = ran.stdout.split_whitespace().next().and_then(|word| word.parse().ok());
        match found {
            None => return Ok(Seen::fail(both_streams(&ran), format!("the digest of {path} cannot be taken"))),
            Some(found) if found != wanted => {
                let reason = format!("{path} has digest {found}, expected {wanted}");
                return Ok(Seen::fail(format!("sha256 {found}"), reason));
            }
            Some(_) => {}
        }
    }
    at_content(target, file, said, redact)
}

/// The texts that a file must have in it.
fn at_content(target: &dyn Target, file: &File, said: &str, redact: &[Pattern]) -> Result<Seen, TargetError> {
    let path = &file.path;
    if file.contains.is_none() && file.matches.is_none() {
        return Ok(Seen::pass(said));
    }
    let Some(content) = target.read(path.as_str(), FILE_BYTES + 1)? else {
        return Ok(Seen::fail("", format!("{path} does not exist")));
    };
    if content.len() as u64 > FILE_BYTES {
        return Ok(Seen::fail("", format!("{path} is larger than {FILE_BYTES} bytes: it is not looked into")));
    }
    let text = String::from_utf8_lossy(&content);
    let wanted = Wanted {
        exactly: None,
        contains: file.contains.as_deref(),
        matches: file.matches.as_ref(),
        json: &BTreeMap::new(),
        redact,
    };
    Ok(match wanted.unmet(path.as_str(), &text) {
        None => Seen::pass(said),
        reason => Seen::unless(text, reason),
    })
}

pub(super) fn at_package(target: &dyn Target, package: &Package, timeout: Duration) -> Result<Seen, TargetError> {
    let name = &package.name;
    let command = format!(
        "{}case $(package_system) in \
         dpkg) dpkg-query -W -f='${{db:Status-Status}} ${{Version}}\\n' {name};; \
         rpm) rpm -q --qf 'installed %{{EVR}}\\n' {};; esac",
        PackageSystem::shell(),
        // As rpm names one of several versions.
        name.as_str().replace('@', "-")
    );
    let ran = target.run(&command, None, timeout)?;
    // One line an architecture (dpkg) or an installed version (rpm, e.g. kernels).
    let lines = ran.stdout.lines().filter(|_| ran.exit == Some(0)).filter_map(|line| line.split_once(' '));
    let versions: Vec<&str> =
        lines.filter(|(status, _)| *status == "installed").map(|(_, version)| version.trim()).collect();
    let found = versions.join(", ");
    let reason = match (package.state, versions.is_empty(), &package.version) {
        (Installed::Absent, false, _) => Some(format!("{name} {found} is installed, expected absent")),
        (Installed::Absent, true, _) => None,
        (Installed::Installed, true, _) => Some(format!("{name} is not installed")),
        (Installed::Installed, false, Some(wanted)) if !versions.contains(&wanted.as_str()) => {
            Some(format!("{name} is {found}, expected {wanted}"))
        }
        (Installed::Installed, false, _) => None,
    };
    Ok(Seen::unless(both_streams(&ran), reason))
}

pub(super) fn at_port(target: &dyn Target, port: &Port, timeout: Duration) -> Result<Seen, TargetError> {
    // The kernel's own tables: no tool need be installed. States: 0A is LISTEN, 07 an unconnected UDP socket. They are searched where
    // they lie, since those of a busy server are larger than any output that is kept.
    let (protocol, state) = match port.protocol {
        Protocol::Tcp => ("tcp", "0A"),
        Protocol::Udp => ("udp", "07"),
    };
    let number = port.number;
    let command = format!(
        "cat /proc/net/{protocol} /proc/net/{protocol}6 2>/dev/null | \
         grep -m 1 -E '^ *[0-9]+: [0-9A-F]+:{number:04X} [0-9A-F]+:[0-9A-F]{{4}} {state} '"
    );
    let listening = target.run(&command, None, timeout)?.exit == Some(0);
    let reason = match (port.state, listening) {
        (Listening::Open, false) => Some(format!("nothing listens on {protocol} port {number}")),
        (Listening::Closed, true) => Some(format!("something listens on {protocol} port {number}, expected nothing")),
        (Listening::Open, true) | (Listening::Closed, false) => None,
    };
    Ok(Seen::unless(format!("{protocol} port {number}"), reason))
}

/// A word for the shell that is nothing but itself.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
