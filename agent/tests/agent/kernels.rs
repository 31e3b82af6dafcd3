//! Orders that bring a kernel: GRUB's own environment block, below a root of the host's own, says what would be booted. The machine boots
//! when the agent is started in another boot; what GRUB does then is done here. Real machines boot in the tests of the whole.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use patchlab_protocol::{
    Boots, Envelope, Refusal, Role,
    document::{Action, Cause, OnFailure, Order, RebootRule, RebootWhen, RunState},
    mib,
};

use super::{
    database::Package,
    host::{Host, NAME, give_shell, missing, run},
    manager::oid,
};

const OLD: &str = "6.1.0-50-amd64";
const NEW: &str = "6.1.0-51-amd64";
const BLOCK: &str = "# GRUB Environment Block\n";

fn write(host: &Host, path: &str, text: &str) {
    let path = host.path("root").join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The host runs `kernel` in the boot `name`.
fn boot(host: &Host, name: &str, kernel: &str) {
    write(host, "proc/sys/kernel/random/boot_id", &format!("{name}\n"));
    write(host, "proc/cmdline", &format!("BOOT_IMAGE=/boot/vmlinuz-{kernel} root=/dev/vda1 ro panic=5\n"));
}

fn entry(release: &str) -> String {
    format!(
        "menuentry 'Linux {release}' --class os $menuentry_id_option 'linux-{release}' {{\n\
             \tlinux\t/boot/vmlinuz-{release} root=/dev/vda1 ro panic=5\n}}\n"
    )
}

/// What GRUB finds in its block: the entry that it boots once, and the one that it boots otherwise.
fn told(host: &Host) -> [Option<String>; 2] {
    let text = fs::read_to_string(host.path("root/boot/grub/grubenv")).unwrap();
    assert_eq!(text.len(), 1024);
    ["next_entry=", "saved_entry="].map(|name| text.lines().find_map(|line| Some(line.strip_prefix(name)?.to_owned())))
}

/// GRUB boots: it forgets the entry that it boots once.
fn grub_boots(host: &Host) {
    let [_, saved] = told(host);
    block(host, saved.as_deref());
}

fn block(host: &Host, saved: Option<&str>) {
    let saved = saved.map(|entry| format!("saved_entry={entry}\n")).unwrap_or_default();
    write(host, "boot/grub/grubenv", &format!("{:#<1024}", format!("{BLOCK}{saved}")));
}

/// A host that boots by a GRUB whose default is `default`.
fn host(default: &str) -> Host {
    let host = Host::new();
    boot(&host, "one", OLD);
    write(&host, &format!("boot/vmlinuz-{OLD}"), "a kernel");
    let once = "if [ \"${next_entry}\" ] ; then\n   set default=\"${next_entry}\"\n   set next_entry=\n   save_env next_entry\n\
                else\n   set default=\"";
    let menu = format!("{once}{default}\"\nfi\n{}{}", entry(NEW), entry(OLD));
    write(&host, "boot/grub/grub.cfg", &menu);
    block(&host, None);
    write(&host, "sbin/shutdown", &format!("#!/bin/sh\necho \"$*\" >> {}\n", host.path("asked").display()));
    fs::set_permissions(host.path("root/sbin/shutdown"), fs::Permissions::from_mode(0o755)).unwrap();
    host
}

/// Tells it an order that brings the new kernel.
fn tell(host: &Host, on_failure: OnFailure, postinst: Option<&str>) {
    let name = format!("linux-image-{NEW}");
    let scripts: Vec<_> = postinst.map(|script| ("postinst", script.to_owned())).into_iter().collect();
    let image = format!("boot/vmlinuz-{NEW}");
    let file =
        host.built(&Package { name: &name, version: "1", fields: "", scripts: &scripts, files: &[(&image, "new")] });
    let authority = &host.authority;
    let (mut order, _) = authority.order("PO-1", &host.class, vec![file], vec![]);
    let change: &mut Order = &mut order;
    change.reboot = Some(RebootRule { when: RebootWhen::IfNeeded, grace_minutes: 0 });
    change.on_failure = on_failure;
    let digest = host.publish(&Envelope::sign(order.clone(), &authority.keys[&Role::Drafter]));
    let release = host.publish(&authority.release(&order, digest, &[&format!("install {name} all - -> 1")]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    let manager = host.deployer();
    manager.create(1, &host.uri, [digest, release, approval, activation].map(Some)).unwrap();
    manager.set(&[(oid(mib::order::ENTRY, &[mib::order::LIFETIME, 1]), 'u', "120".to_owned())]).unwrap();
    manager.start(1, 1).unwrap();
}

fn wait_for_shutdown(host: &Host) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while host.deployer().wait_until(1, 1, RunState::Rebooting) != "reboots in 0 min" {
        assert!(std::time::Instant::now() < deadline, "no shutdown is asked for:\n{}", host.log());
    }
}

fn error(host: &Host) -> String {
    let manager = host.deployer();
    manager.text(&manager.run_cell(mib::run::ERROR, 1, 1))
}

fn id(release: &str) -> Option<String> {
    Some(format!("linux-{release}"))
}

#[test]
fn a_new_kernel_is_booted_once_and_confirmed_when_it_runs_and_the_checks_passed() {
    if missing() {
        return;
    }
    for (chosen, confirmed) in [(None, None), (id(OLD), id(NEW))] {
        let mut host = host("${saved_entry}");
        block(&host, chosen.as_deref());
        tell(&host, OnFailure::Leave, None);
        wait_for_shutdown(&host);
        assert_eq!(told(&host), [id(NEW), id(OLD)], "once the new one, and otherwise the old one");
        host.kill();
        grub_boots(&host);
        boot(&host, "two", NEW);
        host.start();
        assert_eq!(host.deployer().wait(1, 1), RunState::Succeeded, "{}", host.log());
        assert_eq!(told(&host), [None, confirmed]);
        assert_eq!(error(&host), "");
    }
}

#[test]
fn a_host_that_fell_back_says_so_and_walks_back_or_keeps_the_old_kernel_as_default() {
    if missing() {
        return;
    }
    for (on_failure, ends, cause, default) in [
        (OnFailure::RollBack, RunState::RolledBack, Some(Cause::Reboot), None),
        (OnFailure::Leave, RunState::Failed, None, id(OLD)),
    ] {
        let mut host = host("${saved_entry}");
        tell(&host, on_failure, None);
        wait_for_shutdown(&host);
        host.kill();
        grub_boots(&host);
        boot(&host, "two", OLD);
        host.start();
        assert_eq!(host.deployer().wait(1, 1), ends, "{}", host.log());
        let said = error(&host);
        assert!(said.contains(OLD) && said.contains(NEW) && said.contains("fell back"), "{said}");
        assert_eq!(host.result(1, 1).0.cause, cause);
        assert_eq!(host.packages().is_empty(), cause.is_some(), "{}", host.packages());
        assert_eq!(told(&host), [None, default]);
    }
}

#[test]
fn a_host_that_could_not_come_back_refuses_before_anything_is_changed_or_goes_on_and_says_so() {
    if missing() {
        return;
    }
    let first = host("0");
    tell(&first, OnFailure::RollBack, None);
    assert_eq!(first.deployer().wait(1, 1), RunState::Refused, "{}", first.log());
    assert_eq!(first.result(1, 1).0.refusal, Some(Refusal::Preflight));
    let said = error(&first);
    assert!(said.contains("GRUB_DEFAULT=saved"), "{said}");
    assert_eq!((first.packages().as_str(), told(&first)), ("", [None, None]));

    let mut second = host("0");
    second.kill();
    second.go_on_without_fallback();
    second.start();
    tell(&second, OnFailure::RollBack, None);
    wait_for_shutdown(&second);
    assert_eq!(told(&second), [None, None]);
    second.kill();
    boot(&second, "two", NEW);
    second.start();
    assert_eq!(second.deployer().wait(1, 1), RunState::Succeeded, "{}", second.log());
    let said = error(&second);
    assert!(said.contains("without a way back") && said.contains("GRUB_DEFAULT=saved"), "{said}");
}

#[test]
fn a_kernel_that_was_proven_on_what_this_host_does_not_boot_is_refused_or_goes_on() {
    if missing() {
        return;
    }
    let boots = |dkms: &[&str]| Boots {
        flavour: Some("amd64".into()),
        dkms: dkms.iter().map(|name| (*name).to_owned()).collect(),
    };
    let host_with_zfs = |proven: Boots| {
        let mut host = host("${saved_entry}");
        write(&host, "var/lib/dkms/zfs/2.1.11/source", "");
        host.authority.boots = Some(proven);
        host
    };
    let first = host_with_zfs(boots(&[]));
    tell(&first, OnFailure::RollBack, None);
    assert_eq!(first.deployer().wait(1, 1), RunState::Refused, "{}", first.log());
    assert_eq!(first.result(1, 1).0.refusal, Some(Refusal::Preflight));
    let said = error(&first);
    assert!(said.contains("without the modules zfs") && said.contains("uncovered"), "{said}");

    let covered = host_with_zfs(boots(&["zfs"]));
    tell(&covered, OnFailure::RollBack, None);
    wait_for_shutdown(&covered);

    let mut told_to = host_with_zfs(boots(&[]));
    told_to.kill();
    told_to.go_on_uncovered();
    told_to.start();
    tell(&told_to, OnFailure::RollBack, None);
    wait_for_shutdown(&told_to);
    assert!(told_to.log().contains("this host boots otherwise"), "{}", told_to.log());
}

#[test]
fn an_agent_that_is_killed_while_the_kernel_is_installed_leaves_the_old_one_as_default() {
    if missing() {
        return;
    }
    for (on_failure, ends, default) in
        [(OnFailure::Leave, RunState::Aborted, id(OLD)), (OnFailure::RollBack, RunState::RolledBack, None)]
    {
        let mut host = host("${saved_entry}");
        give_shell(&host.path("root"));
        run(Command::new("mkfifo").arg(host.path("root/gate")));
        tell(&host, on_failure, Some("#!/bin/sh\n[ -e /begun ] && exit 0\n: > /begun\nread line < /gate\n"));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !host.path("root/begun").exists() {
            assert!(std::time::Instant::now() < deadline, "{}", host.log());
            std::thread::yield_now();
        }
        assert_eq!(told(&host), [None, id(OLD)], "before the package's script, which may make the new one first");
        host.kill();
        assert_eq!(told(&host), [None, id(OLD)]);
        host.start();
        assert_eq!(host.deployer().wait(1, 1), ends, "{}", host.log());
        assert_eq!(told(&host), [None, default], "{}", host.log());
    }
}
