//! Commands with a deadline: each in a process group of its own, so that all of it can be ended, also by the next
//! agent.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use serde::{Deserialize, Serialize};

/// How long a process group may take to end after SIGTERM before it is killed.
pub const GRACE: Duration = Duration::from_secs(10);
/// Bytes that are still read of what a command that ended left in its pipes: more than both hold (pipe(7)).
const DRAINED: u64 = 1 << 20;
/// Characters of a command's last words.
const WORDS: usize = 500;

/// Names one process for ever: pids are used again, pids with a start time within a boot are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessMark {
    /// Process id, and id of the process group it leads.
    pub pid: i32,
    /// Start time, clock ticks since boot.
    pub start: u64,
    /// Which boot.
    pub boot: String,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Exit status; `None` when it was killed.
    pub exit: Option<i32>,
    /// Standard output, lossily decoded; of more than the limit its ends.
    pub stdout: String,
    /// Standard error, lossily decoded; of more than the limit its ends.
    pub stderr: String,
    /// Bytes that both had, also those that are not kept.
    pub written: u64,
    /// Why it is no longer running.
    pub ended: patchlab_check::target::Ended,
}

impl Finished {
    /// Whether it exited with 0.
    pub fn succeeded(&self) -> bool {
        self.exit == Some(0)
    }

    /// The last lines of what it said, errors first, for people. A line that is indented goes on with the one before.
    pub fn last_words(&self) -> String {
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let mut in_error = false;
        let mut is_error = |line: &&str| {
            let goes_on = in_error && line.starts_with(char::is_whitespace);
            in_error = goes_on || line.trim_start().starts_with("E:") || line.contains("error");
            in_error
        };
        let errors: Vec<&str> = lines.iter().copied().filter(|line| is_error(line)).collect();
        let chosen = if errors.is_empty() { &lines } else { &errors };
        let last: Vec<&str> = chosen[chosen.len().saturating_sub(3)..].iter().map(|line| line.trim()).collect();
        let words = last.join("; ").replace(":; ", ": ");
        // A line may be as long as all that is kept; its end says what it came to.
        let cut = words.chars().count().saturating_sub(WORDS);
        if cut == 0 { words } else { format!("…{}", words.chars().skip(cut).collect::<String>()) }
    }
}

/// Runs a command until it ends or `deadline` passes; of each output stream with more than `limit` bytes the first and the last are
/// kept, a quarter and three, since what it ends with tells most.
/// `started` is told the process before it is waited for.
///
/// What the command leaves running behind it (a service it restarted) does not hold this up.
///
/// # Errors
/// When it cannot be started or waited for.
pub fn run(
    command: &mut Command,
    deadline: Instant,
    limit: u64,
    started: impl FnOnce(ProcessMark),
) -> io::Result<Finished> {
    let mut child =
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = Pid::from_child(&child);
    if let Some(mark) = mark(pid) {
        started(mark);
    }
    let mut outputs = [
        Output::new(child.stdout.take().map(OwnedFd::from), limit),
        Output::new(child.stderr.take().map(OwnedFd::from), limit),
    ];
    let exited = pidfd_open(pid, PidfdFlags::empty())?;
    let ended = wait(&exited, &mut outputs, pid, deadline)?;
    drain(&mut outputs)?;
    let exit = reap(&mut child)?;
    let written = outputs.iter().map(|output| output.written).sum();
    let [stdout, stderr] = outputs.map(Output::into_text);
    Ok(Finished { exit, stdout, stderr, written, ended })
}

fn reap(child: &mut Child) -> io::Result<Option<i32>> {
    Ok(child.wait()?.code())
}

/// Waits for the exit; ends the whole group when the deadline passes.
fn wait(
    exited: &OwnedFd,
    outputs: &mut [Output; 2],
    group: Pid,
    deadline: Instant,
) -> io::Result<patchlab_check::target::Ended> {
    use patchlab_check::target::Ended;
    let mut limit = deadline;
    let mut signals = [Signal::TERM, Signal::KILL].into_iter();
    let mut ended = Ended::ByItself;
    loop {
        let left = limit.saturating_duration_since(Instant::now());
        let seen = step(Some(exited), outputs, left)?;
        if seen == Seen::Exit {
            // apt-get ends at once, the dpkg it started a moment later, and holds its lock until then.
            if ended == Ended::ByTimeout {
                await_end_of_group(group)?;
            }
            return Ok(ended);
        }
        // One that never stops writing is never silent: the clock counts, not the silence.
        if left.is_zero() {
            ended = Ended::ByTimeout;
            // After SIGKILL the exit is certain, whenever the kernel gets to it.
            let Some(signal) = signals.next() else { continue };
            signal_group(group, signal)?;
            limit = Instant::now() + GRACE;
        }
    }
}

fn signal_group(group: Pid, signal: Signal) -> io::Result<()> {
    match kill_process_group(group, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until nothing in the group runs any more; what still does after [`GRACE`] is killed.
fn await_end_of_group(group: Pid) -> io::Result<()> {
    let mut limit = Instant::now() + GRACE;
    loop {
        let members = members(group)?;
        let Some(first) = members.first() else { return Ok(()) };
        let left = limit.saturating_duration_since(Instant::now());
        if left.is_zero() {
            signal_group(group, Signal::KILL)?;
            limit = Instant::now() + GRACE;
        }
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(first, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Handles of the processes of a group that still run; those that only wait to be reaped hold nothing.
fn members(group: Pid) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else { continue };
        let Some(fields) = stat(pid.as_raw_nonzero().get()) else { continue };
        let in_group = fields.get(2).and_then(|field| field.parse().ok()) == Some(group.as_raw_nonzero().get());
        if !in_group || matches!(fields.first().map(String::as_str), Some("Z" | "X")) {
            continue;
        }
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => found.push(handle),
            Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Takes what is in the pipes now; who still holds their other end keeps it, and may write for ever.
fn drain(outputs: &mut [Output; 2]) -> io::Result<()> {
    let enough = outputs.iter().map(|output| output.written).sum::<u64>() + DRAINED;
    while outputs.iter().any(|output| output.pipe.is_some())
        && outputs.iter().map(|output| output.written).sum::<u64>() < enough
    {
        if step(None, outputs, Duration::ZERO)? == Seen::Nothing {
            break;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Exit,
    Output,
    Nothing,
}

fn step(exited: Option<&OwnedFd>, outputs: &mut [Output; 2], timeout: Duration) -> io::Result<Seen> {
    let timeout =
        Timespec { tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: timeout.subsec_nanos().into() };
    let (exit, readable) = {
        let mut fds: Vec<PollFd<'_>> = exited.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)).collect();
        fds.extend(
            outputs
                .iter()
                .filter_map(|o| o.pipe.as_ref())
                .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)),
        );
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let exit = exited.is_some() && ready[0];
        (exit, ready[usize::from(exited.is_some())..].to_vec())
    };
    // What is left in the pipes is taken afterwards: who else holds them may write for ever.
    if exit {
        return Ok(Seen::Exit);
    }
    if readable.iter().any(|ready| *ready) {
        let open = outputs.iter_mut().filter(|output| output.pipe.is_some());
        for (output, _) in open.zip(readable).filter(|(_, ready)| *ready) {
            output.read()?;
        }
        return Ok(Seen::Output);
    }
    Ok(Seen::Nothing)
}

/// One output stream of a command, and its ends.
struct Output {
    pipe: Option<OwnedFd>,
    head: Vec<u8>,
    tail: Vec<u8>,
    limit: usize,
    written: u64,
}

impl Output {
    fn new(pipe: Option<OwnedFd>, limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { pipe, head: Vec::new(), tail: Vec::new(), limit, written: 0 }
    }

    fn tail_limit(&self) -> usize {
        self.limit - self.limit / 4
    }

    /// One read from a pipe that has something, or its end.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let Some(pipe) = &self.pipe else { return Ok(()) };
        let read = rustix::io::read(pipe, &mut buffer)?;
        if read == 0 {
            self.pipe = None;
        }
        self.keep(&buffer[..read]);
        Ok(())
    }

    fn keep(&mut self, new: &[u8]) {
        self.written += new.len() as u64;
        let (head, rest) = new.split_at(new.len().min(self.limit / 4 - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend_from_slice(rest);
        // Not at every read, since what is behind moves up.
        if self.tail.len() > 2 * self.tail_limit() {
            self.trim();
        }
    }

    fn trim(&mut self) {
        self.tail.drain(..self.tail.len().saturating_sub(self.tail_limit()));
    }

    fn into_text(mut self) -> String {
        self.trim();
        let left_out = self.written - (self.head.len() + self.tail.len()) as u64;
        if left_out > 0 {
            self.head.extend_from_slice(format!("\n… {left_out} bytes left out …\n").as_bytes());
        }
        self.head.append(&mut self.tail);
        String::from_utf8_lossy(&self.head).into_owned()
    }
}

/// The mark of a live process; `None` when it is gone.
fn mark(pid: Pid) -> Option<ProcessMark> {
    let pid = pid.as_raw_nonzero().get();
    Some(ProcessMark { pid, start: start_time(pid)?, boot: boot()? })
}

fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().to_owned())
}

/// Whether a process runs; one that only waits to be reaped does not.
pub fn is_alive(pid: Pid) -> bool {
    stat(pid.as_raw_nonzero().get())
        .is_some_and(|fields| !matches!(fields.first().map(String::as_str), Some("Z" | "X")))
}

/// Field 22 of `/proc/PID/stat`: clock ticks since boot.
fn start_time(pid: i32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// The fields of `/proc/PID/stat` from the third (state) on: counted after the command's name, which may hold anything.
fn stat(pid: i32) -> Option<Vec<String>> {
    let mut text = String::new();
    fs::File::open(format!("/proc/{pid}/stat")).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Ends the process group that an earlier agent started, and waits until it is gone. Its leader may be gone already,
/// and what it started not: a group's number is not used again as long as something is in it.
///
/// # Errors
/// When it cannot be signalled or waited for.
pub fn end_orphan(orphan: &ProcessMark) -> io::Result<()> {
    let Some(group) = Pid::from_raw(orphan.pid) else { return Ok(()) };
    let leader = mark(group);
    if boot().as_ref() != Some(&orphan.boot) || leader.is_some_and(|leader| leader != *orphan) {
        return Ok(());
    }
    signal_group(group, Signal::TERM)?;
    await_end_of_group(group)
}

/// Ends the process groups of all that has its current directory in `folder`, which is an agent's own: what an earlier agent started, and
/// had no time to journal.
///
/// # Errors
/// When one cannot be signalled or waited for.
pub fn end_all_in(folder: &Path) -> io::Result<()> {
    let mut groups = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Of one that has ended there is none.
        let is_in = fs::read_link(entry.path().join("cwd")).is_ok_and(|at| at.starts_with(folder));
        let group = stat(pid).and_then(|fields| fields.get(2)?.parse().ok()).and_then(Pid::from_raw);
        groups.extend(group.filter(|_| is_in).map(|group| group.as_raw_nonzero().get()));
    }
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        signal_group(group, Signal::TERM)?;
        await_end_of_group(group)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use patchlab_check::target::Ended;

    use super::*;

    fn shell(script: &str, limit: u64, timeout: Duration) -> Finished {
        run(Command::new("/bin/sh").args(["-c", script]), Instant::now() + timeout, limit, |_| {}).unwrap()
    }

    #[test]
    fn of_a_long_output_the_ends_are_kept_and_the_exit_status_is_told() {
        let script = "echo first; yes | head -c 300000000; echo last; echo oops >&2; exit 3";
        let finished = shell(script, 1000, Duration::from_secs(60));
        assert_eq!((finished.exit, finished.written, finished.ended), (Some(3), 300_000_016, Ended::ByItself));
        let (head, tail) = finished.stdout.split_once("\n… 299999011 bytes left out …\n").unwrap();
        assert_eq!((head.len(), tail.len()), (250, 750));
        assert!(head.starts_with("first\ny\n") && tail.ends_with("y\nlast\n"), "{head} {tail}");
        assert_eq!(finished.last_words(), "oops");
        let all = "y\n".repeat(500);
        assert_eq!(shell("yes | head -c 1000", 1000, Duration::from_secs(20)).stdout, all);
    }

    #[test]
    fn the_last_words_of_a_gigabyte_are_its_last_ones() {
        let finished =
            shell("yes | head -c 1000000000 >&2; echo 'E: it broke' >&2; exit 1", 1000, Duration::from_secs(60));
        assert_eq!(finished.last_words(), "E: it broke");
    }

    #[test]
    fn an_error_is_told_with_the_lines_that_belong_to_it() {
        let stderr = "warning: x\nerror: Failed dependencies:\n\tlib is needed by web\nbye\n".to_owned();
        let finished = Finished { exit: Some(2), stdout: String::new(), stderr, written: 0, ended: Ended::ByItself };
        assert_eq!(finished.last_words(), "error: Failed dependencies: lib is needed by web");
    }

    #[test]
    fn a_command_that_leaves_something_running_does_not_hold_us_up() {
        let begun = Instant::now();
        let finished = shell("sleep 20 & echo done", 1000, Duration::from_secs(20));
        assert_eq!((finished.exit, finished.stdout.as_str()), (Some(0), "done\n"));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn one_that_never_stops_writing_is_ended_all_the_same() {
        let begun = Instant::now();
        let finished = shell("yes", 1000, Duration::from_millis(300));
        assert_eq!((finished.exit, finished.ended), (None, Ended::ByTimeout));
        assert!(begun.elapsed() < GRACE);
        // And one that left something behind that does holds nobody up.
        let finished = shell("yes & echo done", 1000, Duration::from_secs(20));
        assert_eq!((finished.exit, finished.ended), (Some(0), Ended::ByItself));
        assert!(begun.elapsed() < GRACE);
    }

    #[test]
    fn the_deadline_ends_the_whole_group() {
        let begun = Instant::now();
        let finished = shell("sleep 60 & sleep 60", 1000, Duration::from_millis(200));
        assert_eq!((finished.exit, finished.ended), (None, Ended::ByTimeout));
        assert!(begun.elapsed() < GRACE);
    }

    #[test]
    fn what_an_orphan_left_behind_in_its_group_is_ended_too() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {0}.new; mv {0}.new {0}; read forever", told.display());
        let mut leader =
            Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        let mark = mark(Pid::from_child(&leader)).unwrap();
        while !told.exists() {
            std::thread::yield_now();
        }
        let left: i32 = fs::read_to_string(&told).unwrap().trim().parse().unwrap();
        leader.kill().unwrap();
        leader.wait().unwrap();
        assert!(start_time(left).is_some());
        end_orphan(&mark).unwrap();
        assert!(stat(left).is_none_or(|fields| fields[0] == "Z"));
    }

    #[test]
    fn what_nobody_remembers_is_ended_by_where_it_works_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let [inside, outside] = ["room/work", "room-2"].map(|name| folder.path().join(name));
        let mut started = [&inside, &outside].map(|at| {
            fs::create_dir_all(at).unwrap();
            let mut command = Command::new("/bin/sh");
            // A shell that waits for what it started.
            command.args(["-c", "sleep 60; exit 0"]).current_dir(at).process_group(0).spawn().unwrap()
        });
        end_all_in(&folder.path().join("room")).unwrap();
        let [inside, outside] = &mut started;
        assert!(!inside.wait().unwrap().success());
        assert!(outside.try_wait().unwrap().is_none(), "a folder that is only called alike");
        end_all_in(&folder.path().join("room-2")).unwrap();
        outside.wait().unwrap();
    }

    #[test]
    fn an_orphan_is_ended_and_a_stranger_with_its_pid_is_not() {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let mark = mark(Pid::from_child(&child)).unwrap();
        end_orphan(&ProcessMark { start: mark.start + 1, ..mark.clone() }).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        end_orphan(&mark).unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
