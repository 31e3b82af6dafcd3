//! The floor: the same command line that libvirt makes, started without it.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use patchlab_lab::Baseline;
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a clone of the template and takes it away again: milliseconds until the guest agent answered.
pub fn ready_ms(command_line: &[String], baseline: &Baseline, work: &Path) -> anyhow::Result<f64> {
    let (monitor, agent) = (work.join("bare-monitor"), work.join("bare-agent"));
    let (disk, log) = (work.join("bare.qcow2"), work.join("bare.log"));
    let console = work.join("bare.console");
    let arguments =
        without_libvirt(command_line, &Ends { monitor: &monitor, agent: &agent, disk: &disk, console: &console })?;
    let begun = Instant::now();
    let layer = fs::read_dir(work)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("empty-")))
        .context("no empty layer")?;
    fs::copy(layer, &disk)?;
    let output = fs::File::create(&log)?;
    let child = Command::new(&command_line[0])
        .args(&arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    let mut running = Running(child);
    let ready = clone(&mut running, baseline, work, &monitor, &agent)
        .with_context(|| format!("{arguments:?}: {}", fs::read_to_string(&log).unwrap_or_default()));
    let elapsed = begun.elapsed();
    drop(running);
    for path in [&monitor, &agent, &disk] {
        let _ = fs::remove_file(path);
    }
    ready.map(|()| elapsed.as_secs_f64() * 1000.0)
}

/// Ends the process, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn clone(running: &mut Running, baseline: &Baseline, work: &Path, monitor: &Path, agent: &Path) -> anyhow::Result<()> {
    let mut monitor = connect(running, monitor)?;
    read(&mut monitor)?;
    ask(&mut monitor, "qmp_capabilities", json!({}))?;
    let capability = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
    ask(&mut monitor, "migrate-set-capabilities", capability)?;
    let socket = work.join("bare-stream");
    ask(&mut monitor, "migrate-incoming", json!({ "uri": format!("unix:{}", socket.display()) }))?;
    let mut stream = UnixStream::connect(&socket)?;
    io::copy(&mut fs::File::open(baseline.file("state"))?, &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    let _ = fs::remove_file(&socket);
    let deadline = Instant::now() + TIMEOUT;
    while ask(&mut monitor, "query-status", json!({}))?["status"] != "paused" {
        ensure!(Instant::now() < deadline, "the state was not loaded");
        std::thread::sleep(Duration::from_millis(1));
    }
    ask(&mut monitor, "cont", json!({}))?;
    let mut agent = connect(running, agent)?;
    ask(&mut agent, "guest-ping", json!({}))?;
    Ok(())
}

fn connect(running: &mut Running, path: &Path) -> anyhow::Result<BufReader<UnixStream>> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(TIMEOUT))?;
                return Ok(BufReader::new(stream));
            }
            Err(error) => {
                if let Some(status) = running.0.try_wait()? {
                    bail!("QEMU ended: {status}");
                }
                ensure!(Instant::now() < deadline, "{}: {error}", path.display());
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn read(stream: &mut BufReader<UnixStream>) -> anyhow::Result<Value> {
    let mut line = String::new();
    ensure!(stream.read_line(&mut line)? > 0, "QEMU closed the connection");
    Ok(serde_json::from_str(&line)?)
}

fn ask(stream: &mut BufReader<UnixStream>, command: &str, arguments: Value) -> anyhow::Result<Value> {
    let request = json!({ "execute": command, "arguments": arguments });
    writeln!(stream.get_mut(), "{request}")?;
    loop {
        let mut answer = read(stream)?;
        if !answer["error"].is_null() {
            bail!("{command}: {}", answer["error"]["desc"]);
        }
        // Events come in between.
        if answer.get("return").is_some() {
            return Ok(answer["return"].take());
        }
    }
}

/// What lies behind the machine's devices.
struct Ends<'a> {
    monitor: &'a Path,
    agent: &'a Path,
    disk: &'a Path,
    console: &'a Path,
}

/// The command line with libvirt's inherited file descriptors replaced by paths, and a disk of its own.
fn without_libvirt(line: &[String], ends: &Ends<'_>) -> anyhow::Result<Vec<String>> {
    let mut arguments = Vec::new();
    let mut words = line.iter().skip(1).peekable();
    while let Some(word) = words.next() {
        let value = words.next_if(|value| !value.starts_with('-'));
        match (word.as_str(), value) {
            ("-object", Some(value)) if value.contains("secret") => continue,
            ("-daemonize" | "-pidfile" | "-add-fd", _) => continue,
            (_, Some(value)) => arguments.extend([word.clone(), value.clone()]),
            (_, None) => arguments.push(word.clone()),
        }
    }
    for argument in &mut arguments {
        if argument.starts_with("socket,id=charmonitor") {
            *argument = format!("socket,id=charmonitor,path={},server=on,wait=off", ends.monitor.display());
        } else if argument.starts_with("socket,id=charchannel0") {
            *argument = format!("socket,id=charchannel0,path={},server=on,wait=off", ends.agent.display());
        } else if argument.starts_with("file,id=charserial0") {
            *argument = format!("file,id=charserial0,path={},append=on", ends.console.display());
        } else if argument.contains("\"filename\"") && argument.contains(".qcow2") && !argument.contains("baselines") {
            let mut node: Value = serde_json::from_str(argument)?;
            node["filename"] = json!(ends.disk.display().to_string());
            *argument = node.to_string();
        }
    }
    Ok(arguments)
}
