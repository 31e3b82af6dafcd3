//! The site's own programs around a run.

use std::{fs, os::unix::fs::PermissionsExt as _};

use patchlab_protocol::{
    Role,
    document::{Action, RunState},
    mib,
};

use super::{
    host::{Host, NAME, missing},
    manager::oid,
};

#[test]
fn a_hook_may_refuse_before_the_work_and_another_sees_that_it_was_done() {
    if missing() {
        return;
    }
    let host = Host::new();
    let hook = |moment: &str, script: String| {
        let path = host.path("hooks").join(moment).join("10-site");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let (drained, seen) = (host.path("drained"), host.path("seen"));
    hook("before.d", format!("test -e {} || {{ echo 'still serving' >&2; exit 1; }}", drained.display()));
    let list = host.path("root/var/lib/dpkg/status");
    hook("after.d", format!("grep '^Version: ' {} > {}; echo $PATCHLAB_ACTION >> {1}", list.display(), seen.display()));

    let authority = &host.authority;
    let old = host.installed(&host.package("web", "1", "", None));
    let (order, envelope) = authority.order("PO-1", &host.class, vec![host.package("web", "2", "", None)], vec![old]);
    let digest = host.publish(&envelope);
    let release = host.publish(&authority.release(&order, digest, &["upgrade web all 1 -> 2"]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    let manager = host.deployer();
    manager.create(1, &host.uri, [digest, release, approval, activation].map(Some)).unwrap();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Refused, "{}", host.log());
    let reason = manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, 1]));
    assert!(reason.contains("still serving"), "{reason}");
    assert!(!seen.exists() && host.packages() == "installed web 1\n");

    // Nothing was used up: the host is drained, and the same permission counts.
    fs::write(&drained, "").unwrap();
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::Succeeded, "{}", host.log());
    assert_eq!(fs::read_to_string(&seen).unwrap(), "Version: 2\napply\n");
}
