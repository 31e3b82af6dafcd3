//! A validation ended by signal 9, in the middle of whatever it is at, and what is left of it afterwards: nothing.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::program::Patchlab;

/// A moment of a validation, and what its progress says then.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// For people.
    pub name: &'static str,
    /// Part of the line on standard error.
    said: &'static str,
    /// What the validation is asked for, so that it comes.
    asked: &'static [&'static str],
}

/// While the clones are made.
pub const CLONE: Moment = Moment { name: "clone", said: ": clone", asked: &[] };
/// When the first clone's agent has answered.
pub const PREPARE: Moment = Moment { name: "prepare", said: "answers as", asked: &[] };
/// While the patch is being applied.
pub const APPLY: Moment = Moment { name: "apply", said: ": apply", asked: &[] };
/// While scenarios run.
pub const SCENARIOS: Moment = Moment { name: "scenarios", said: ": scenarios", asked: &[] };
/// While the patch is being taken back.
pub const ROLLBACK: Moment = Moment { name: "rollback", said: ": rollback", asked: &[] };
/// While the clones boot again.
pub const REBOOT: Moment = Moment { name: "reboot", said: ": reboot", asked: &["--reboot", "always"] };
/// While what is left of the patch is looked for.
pub const COMPARE: Moment = Moment { name: "compare", said: ": compare with the baseline", asked: &[] };
/// While the clones are saved, so as to be kept.
pub const SAVE: Moment = Moment { name: "save", said: ": save the clones", asked: &["--keep", "always"] };

/// How long the kernel and the lab may take to end what is to end: nobody waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that validates an order, on a data folder whose name nothing else on this machine has.
#[derive(Debug)]
pub struct Victim<'a> {
    /// `patchlab` on the data folder.
    pub patchlab: &'a Patchlab,
    /// Part of the data folder's path that nothing else has.
    pub mark: &'a str,
    /// The arguments that make it validate the order.
    pub validate: &'a [String],
}

/// A process that has to do with a data folder.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its command line.
    pub line: String,
    /// Whether it is a worker's own process, and not its init, its emulator or its parent.
    pub is_worker: bool,
}

/// Every process whose command line, environment or mounts name `mark`: a worker's, and its emulators', show it the
/// folder it works in.
pub fn processes_of(mark: &str) -> Vec<Process> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    numbers
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            // A process that ends meanwhile has nothing to read; a zombie has nothing left.
            let read = |name: &str| fs::read(PathBuf::from(format!("/proc/{pid}/{name}"))).unwrap_or_default();
            let text = |name: &str| String::from_utf8_lossy(&read(name)).replace('\0', " ");
            let (line, environment, mounts) = (text("cmdline"), text("environ"), text("mountinfo"));
            let is_worker = environment.contains("PATCHLAB_WORKER_STAGE=worker") && !line.contains("qemu-system");
            [&line, &environment, &mounts].iter().any(|text| text.contains(mark)).then_some(Process {
                pid,
                line,
                is_worker,
            })
        })
        .collect()
}

/// Signal 9 to one process, by its number.
fn kill(pid: u32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs");
    assert!(status.success(), "process {pid} could not be killed");
}

impl Victim<'_> {
    fn start(&self, arguments: &[&str]) -> (Child, impl Iterator<Item = String> + use<>) {
        let mut validate: Vec<&str> = self.validate.iter().map(String::as_str).collect();
        validate.extend(arguments);
        let mut child = self
            .patchlab
            .command(&validate)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("patchlab starts");
        let lines = BufReader::new(child.stderr.take().expect("its standard error")).lines().map_while(Result::ok);
        (child, lines)
    }

    /// Kills the whole validation at that moment. The next `lab gc` leaves nothing of it.
    ///
    /// # Panics
    /// It does, or the moment does not come.
    pub fn is_killed_at(&self, moment: Moment) {
        let (mut validation, mut lines) = self.start(moment.asked);
        assert!(lines.any(|line| line.contains(moment.said)), "{}: this moment did not come", moment.name);
        let running = processes_of(self.mark);
        // Otherwise it would be no wonder that none is found afterwards.
        assert!(running.iter().any(|process| process.is_worker), "{}: no worker among {running:?}", moment.name);
        let has_machine = running.iter().any(|process| process.line.contains("qemu-system"));
        assert!(has_machine || moment.name == CLONE.name, "{}: no emulator among {running:?}", moment.name);
        validation.kill().expect("it can be killed");
        validation.wait().expect("it ends");
        assert_eq!(self.newest_run(), "interrupted", "{}", moment.name);
        self.leaves_nothing(moment.name);
        eprintln!("killed at {}: nothing is left of {} processes", moment.name, running.len());
    }

    /// Interrupts it at that moment, as a terminal or a CI runner does. It ends by itself, and takes away what it made before it
    /// does.
    ///
    /// # Panics
    /// It does not, or the moment does not come.
    pub fn is_interrupted_at(&self, moment: Moment, signal: &str) {
        let (mut validation, mut lines) = self.start(moment.asked);
        assert!(lines.any(|line| line.contains(moment.said)), "{}: this moment did not come", moment.name);
        let sent = Command::new("kill").args([signal, &validation.id().to_string()]).status().expect("kill runs");
        assert!(sent.success(), "{signal} could not be sent");
        lines.for_each(drop);
        assert_eq!(validation.wait().expect("it ends").code(), Some(130), "{signal} at {}", moment.name);
        let found = self.said(&["lab", "gc", "--dry-run"]);
        assert_eq!(found, "nothing to collect", "{signal} at {}", moment.name);
        assert_eq!(self.newest_run(), "interrupted");
        self.leaves_nothing(moment.name);
    }

    /// How the newest record says that its run ended.
    fn newest_run(&self) -> String {
        let runs: Value = serde_json::from_str(&self.said(&["lab", "runs", "--json", "-"])).expect("JSON");
        runs[0]["state"].as_str().unwrap_or_default().to_owned()
    }

    /// What a command prints.
    fn said(&self, arguments: &[&str]) -> String {
        let output = self.patchlab.command(arguments).output().expect("patchlab starts");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Kills the worker, and not its parent, whenever a clone of it is prepared: the lab broke, and says so.
    ///
    /// # Panics
    /// It says something else.
    pub fn loses_every_worker(&self) {
        let verdict = self.patchlab.data.join("lost-workers.json");
        let json = ["--json", &verdict.display().to_string()];
        let (status, deaths) = self.kill_workers(PREPARE, &json, usize::MAX);
        assert_eq!(status.code(), Some(4), "{status}");
        let verdict: Value = serde_json::from_slice(&fs::read(&verdict).expect("a verdict")).expect("JSON");
        assert_eq!((&verdict["verdict"], deaths), (&"lab-error".into(), 2), "{verdict}");
        self.leaves_nothing("every worker was killed");
    }

    /// Kills one worker at that moment: the validation starts again in a fresh one, and passes.
    ///
    /// # Panics
    /// It does not, or the moment does not come.
    pub fn loses_one_worker(&self, moment: Moment) {
        let (status, deaths) = self.kill_workers(moment, &[], 1);
        assert_eq!((status.code(), deaths), (Some(0), 1), "{}: {status}", moment.name);
        self.leaves_nothing(moment.name);
        eprintln!("lost a worker at {}: another one did it, and nothing is left", moment.name);
    }

    /// Kills up to `times` workers, each as soon as it is at that moment. How the validation ended, and how many died.
    fn kill_workers(&self, moment: Moment, arguments: &[&str], times: usize) -> (ExitStatus, usize) {
        let (mut validation, mut lines) = self.start(&[moment.asked, arguments].concat());
        let mut deaths = 0;
        while deaths < times && lines.any(|line| line.contains(moment.said)) {
            let workers: Vec<u32> = processes_of(self.mark)
                .into_iter()
                .filter(|process| process.is_worker)
                .map(|process| process.pid)
                .collect();
            assert_eq!(workers.len(), 1, "{}: one worker at a time", moment.name);
            workers.into_iter().for_each(kill);
            deaths += 1;
            // What the dead one still had to say is not the next one's.
            lines.find(|line| line.contains("once more"));
        }
        lines.for_each(drop);
        (validation.wait().expect("it ends"), deaths)
    }

    fn leaves_nothing(&self, when: &str) {
        self.said(&["lab", "gc"]);
        assert_eq!(self.said(&["lab", "gc"]), "nothing to collect", "{when}");
        let work = fs::read_dir(self.patchlab.data.join("work")).map(|entries| entries.count()).unwrap_or(0);
        assert_eq!(work, 0, "{when}: folders of dead workers are left");
        // The kernel ends the processes of a namespace after its first one, in its own time.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = processes_of(self.mark);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{when}: still there: {left:?}");
            std::thread::yield_now();
        }
    }
}
