//! A libvirt that runs by itself, of a test's own: what is installed on this host stays as it is, and all of it ends with the test.
//!
//! libvirt's folders are empty file systems in a mount namespace, and the daemon and its emulators are in a process namespace whose first
//! process reaps what they leave.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use patchlab_lab::host::Libvirt;

/// How long the daemon may take to answer: the first time it looks for what QEMU can do only when asked.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where it keeps what it keeps.
const FOLDERS: &str = "/etc/libvirt /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt";

/// The daemon. Dropping it ends it, and every machine it has.
#[derive(Debug)]
pub struct Daemon {
    init: Child,
    socket: PathBuf,
    configuration: PathBuf,
}

impl Daemon {
    /// Starts one that listens in `dir`. Needs root.
    ///
    /// # Panics
    /// It does not come up: its last words are in `dir`.
    pub fn start(dir: &Path) -> Self {
        let (socket, log) = (dir.join("libvirt-sock"), dir.join("libvirtd.log"));
        // One that was killed leaves it, and nobody listens there.
        let _ = fs::remove_file(&socket);
        let configuration = dir.join("libvirtd.conf");
        let text =
            format!("unix_sock_dir = \"{}\"\nunix_sock_rw_perms = \"0777\"\nauth_unix_rw = \"none\"\n", dir.display());
        fs::write(&configuration, text).expect("a configuration");
        // No control groups of this host, and no daemon beside it that keeps logs. Where root alone may open /dev/kvm, one whose machines
        // are not root's would ask QEMU for all it can at every call; the lab's machines are its own user's in any case.
        let script = format!(
            "for folder in {FOLDERS}; do mkdir -p $folder && mount -t tmpfs none $folder || exit; done\n\
             printf 'cgroup_controllers = []\\nstdio_handler = \"file\"\\nuser = \"root\"\\ngroup = \"root\"\\n' >/etc/libvirt/qemu.conf\n\
             libvirtd --config \"$0\" --pid-file \"$1\" &\n\
             wait"
        );
        let output = fs::File::create(&log).expect("a log");
        // It ends with the thread that made it, whatever ends that.
        let init = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "--mount-proc",
            ])
            .args(["bash", "-c", &script])
            .args([&configuration, &dir.join("libvirtd.pid")])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("its log"))
            .stderr(output)
            .spawn()
            .expect("setpriv (package util-linux) starts");
        let daemon = Self { init, socket, configuration };
        let begun = Instant::now();
        while UnixStream::connect(&daemon.socket).is_err() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "libvirtd (package libvirt-daemon) does not listen: {said}");
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    /// How it is reached.
    ///
    /// # Panics
    /// Never: this is a URI.
    pub fn libvirt(&self) -> Libvirt {
        format!("qemu+unix:///system?socket={}", self.socket.display()).parse().expect("a URI")
    }

    /// Ends it with all its machines, as a power failure would.
    ///
    /// # Panics
    /// It cannot be ended.
    pub fn kill(&mut self) {
        self.init.kill().expect("it can be killed");
        self.init.wait().expect("it ends");
    }

    /// Stops it, and not its machines: it accepts, and says nothing.
    ///
    /// # Panics
    /// It cannot be stopped.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// It cannot.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| {
            let line = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.starts_with("libvirtd --config ") && line.contains(&self.configuration.display().to_string())
        });
        let numbers: Vec<String> = numbers.collect();
        assert!(!numbers.is_empty(), "libvirtd with {} does not run", self.configuration.display());
        let sent = Command::new("kill").arg(signal).args(&numbers).status().expect("kill runs");
        assert!(sent.success(), "{signal} could not be sent to {numbers:?}");
    }

    /// What `virsh` says.
    ///
    /// # Panics
    /// It says no.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("virsh");
        command.args(["--quiet", "--connect", &self.libvirt().to_string()]).args(arguments);
        let output = command.output().expect("virsh (package libvirt-clients) starts");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The names of its machines, as `virsh` says.
    ///
    /// # Panics
    /// virsh says no.
    pub fn machines(&self) -> Vec<String> {
        let text = self.virsh(&["list", "--name"]);
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}
