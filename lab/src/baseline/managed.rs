//! A captured system that is a managed host: it has an agent of its own, with the host's enrolment, its records and its port. The lab
//! brings the agent on a disk beside every clone, and starts it there under the same unit; so the host's own is taken off before the
//! system is frozen, whatever becomes of other secrets.

use std::time::Duration;

use crate::machine::{Guest, GuestError};

/// Stops the host's own agent, and prints a folder a line: its enrolment and its records, where they are. Nothing where there is no agent.
/// Other places than the usual count when they are as the agent makes them, mode 0700, and below a folder of the root's: whoever wrote
/// `/var/lib` or `/root` there loses nothing. Its first argument is put before all paths.
const STOP: &str = r#"
root=$1 unit=patchlab-agent.service config=$1/etc/patchlab-agent/agent.toml
fragments=$(find "$root"/etc/systemd/system "$root"/usr/local/lib/systemd/system "$root"/lib/systemd/system "$root"/usr/lib/systemd/system \
  "$root"/run/systemd/transient -name "$unit" 2>/dev/null)
[ -n "$fragments" ] || [ -e "$root/etc/patchlab-agent" ] || [ -e "$root/var/lib/patchlab-agent" ] || exit 0
if [ -z "$root" ]; then systemctl stop "$unit" 2>/dev/null; fi
{ echo /etc/patchlab-agent; echo /var/lib/patchlab-agent
  sed -n 's/^[[:space:]]*\(state_dir\|ledger_dir\)[[:space:]]*=[[:space:]]*"\(\/[^"/]*\/[^"]*\)".*/\2/p' "$config" 2>/dev/null |
    while read -r folder; do
      if [ "$(stat -c %a -- "$root$folder" 2>/dev/null)" = 700 ]; then printf '%s\n' "$folder"; fi
    done
} | sort -u
"#;

/// Takes it off: its units, and the folders that its other arguments name. Its first argument is put before all paths. The program itself
/// stays: nothing starts it.
const TAKE_OFF: &str = r#"
root=$1 unit=patchlab-agent.service; shift
if [ -z "$root" ]; then systemctl disable "$unit" >/dev/null 2>&1; fi
for folder in etc/systemd/system usr/local/lib/systemd/system lib/systemd/system usr/lib/systemd/system run/systemd/transient; do
  [ -d "$root/$folder" ] || continue
  find "$root/$folder" -name "$unit" -exec rm -f -- {} + || exit
  rm -rf -- "$root/$folder/$unit.d" || exit
done
for folder; do
  [ -d "$root$folder" ] || continue
  find "$root$folder" -xdev -type f -exec sh -c 'for file; do
    size=$(stat -c %s -- "$file") && head -c "$size" /dev/zero | dd of="$file" conv=notrunc,fsync status=none; done' sh {} +
  rm -rf -- "$root$folder" || exit
done
[ -n "$root" ] && exit 0
systemctl daemon-reload; systemctl reset-failed "$unit" 2>/dev/null
sync
exit 0
"#;

/// What the host's own agent has.
#[derive(Debug)]
pub(super) struct OwnAgent {
    folders: Vec<String>,
}

impl OwnAgent {
    /// Stops it; `None` where the system has none.
    pub(super) fn stop(guest: &Guest, timeout: Duration) -> Result<Option<Self>, GuestError> {
        Ok(Self::said(&String::from_utf8_lossy(&guest.script(STOP, &[""], timeout)?)))
    }

    fn said(text: &str) -> Option<Self> {
        let folders: Vec<String> = text.lines().map(str::to_owned).collect();
        (!folders.is_empty()).then_some(Self { folders })
    }

    /// Takes it off. After secrets were looked for, so that its own are named.
    pub(super) fn take_off(&self, guest: &Guest, timeout: Duration) -> Result<(), GuestError> {
        let folders = self.folders.iter().map(String::as_str);
        guest.script(TAKE_OFF, &[""].into_iter().chain(folders).collect::<Vec<_>>(), timeout).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

    use super::*;

    fn sh(script: &str, root: &Path, arguments: &[String]) -> String {
        let output = Command::new("sh").args(["-c", script, "sh"]).arg(root).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_hosts_own_agent_is_taken_off_with_all_that_says_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(OwnAgent::said(&sh(STOP, root, &[])).is_none(), "there is none");
        let write = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        write(
            "etc/patchlab-agent/agent.toml",
            "# ledger_dir = \"/no/no\"\nstate_dir = \"/srv/agent state\"\nledger_dir = \"/root\"\n",
        );
        write("etc/systemd/system/patchlab-agent.service", "[Unit]\n");
        write("etc/systemd/system/patchlab-agent.service.d/more.conf", "[Service]\n");
        write("etc/systemd/system/other.service", "[Unit]\n");
        write("srv/agent state/journal", "x");
        write("srv/data", "x");
        write("root/notes", "x");
        for (folder, mode) in [("root", 0o700), ("srv/agent state", 0o700)] {
            fs::set_permissions(root.join(folder), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir_all(root.join("etc/systemd/system/multi-user.target.wants")).unwrap();
        let wanted = root.join("etc/systemd/system/multi-user.target.wants/patchlab-agent.service");
        std::os::unix::fs::symlink("/etc/systemd/system/patchlab-agent.service", &wanted).unwrap();
        let agent = OwnAgent::said(&sh(STOP, root, &[])).expect("an agent");
        assert_eq!(agent.folders, ["/etc/patchlab-agent", "/srv/agent state", "/var/lib/patchlab-agent"]);
        sh(TAKE_OFF, root, &agent.folders);
        for gone in [
            "etc/patchlab-agent",
            "srv/agent state",
            "etc/systemd/system/patchlab-agent.service",
            "etc/systemd/system/patchlab-agent.service.d",
        ] {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        assert!(fs::symlink_metadata(&wanted).is_err());
        assert!(
            root.join("etc/systemd/system/other.service").exists()
                && root.join("srv/data").exists()
                && root.join("root/notes").exists()
        );
        assert!(OwnAgent::said(&sh(STOP, root, &[])).is_none());
    }
}
