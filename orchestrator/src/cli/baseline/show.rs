//! What is told of a baseline: what it is made of, what it stands for, and what it holds that it perhaps should not.

use patchlab_lab::{
    Baseline,
    apt::sources::Repository,
    baseline::{self, Coverage, DkmsModule, Extent, MadeBy, OrderName, Record, Secrets, SecretsPolicy, Verified},
    dnf,
    manifest::BootMode,
};

use super::super::{CliError, Output};

/// All that is known of one.
pub(super) fn show(baseline: &Baseline, output: &Output) -> Result<(), CliError> {
    let record = &baseline.record;
    let (frozen, hardware, represents) = (&record.frozen, &record.hardware, &record.represents);
    let fits = baseline.unfit_here().map_or_else(
        || "clones go on from its memory".into(),
        |reason| format!("clones boot its disk: {reason}; `patchlab baseline refreeze {}`", baseline.full_name()),
    );
    let mut pairs = vec![
        ("baseline", baseline.full_name()),
        ("digest", baseline.digest.to_string()),
        ("made", made_of(record)),
        ("system", format!("{} {} {}", record.os.family, record.os.release, record.os.arch)),
        ("kernel", frozen.kernel.clone()),
        ("frozen", output.moment(&frozen.at.to_string())),
        (
            "under",
            format!("QEMU {}, libvirt {}, {:?}", frozen.versions.qemu, frozen.versions.libvirt, hardware.accelerator),
        ),
        ("here", fits),
        ("verified", record.verified.as_ref().map_or_else(|| UNVERIFIED.into(), verified)),
        ("memory", format!("{} MiB, {} processors", hardware.memory_mib, hardware.vcpus)),
        ("screen", hardware.screen.map_or_else(|| "none".into(), |screen| format!("{screen:?}"))),
        ("represents", format!("tags {:?}, packages {:?}", represents.tags, represents.packages)),
        ("pool", format!("{} package files", record.pool.len())),
    ];
    if !record.unpooled.is_empty() {
        let each: Vec<_> =
            record.unpooled.iter().map(|package| format!("{} {}", package.name, package.version)).collect();
        pairs
            .push(("unpooled", format!("no order can be taken back to {}: no suite has their files", each.join(", "))));
    }
    pairs.extend(record.coverage.as_ref().map(coverage).into_iter().flatten());
    pairs.extend(record.secrets.as_ref().map(|secrets| ("secrets", treated(secrets))));
    pairs.extend(
        record.files.iter().map(|(name, file)| ("file", format!("{name}  {} bytes  {}", file.size, file.sha256))),
    );
    output.pairs(&pairs);
    output.json(record)
}

/// Where it comes from, on one line.
fn made_of(record: &Record) -> String {
    let named = |order: &OrderName| format!("by order {} ({})", order.id, order.digest.short());
    match record.made_by() {
        MadeBy::Recipe => "by its recipe".into(),
        MadeBy::Order(parent, order) => format!("of {} {}", parent.short(), named(order)),
        MadeBy::Freezing(parent, None) => format!("of {}, frozen again", parent.short()),
        MadeBy::Freezing(parent, Some(order)) => {
            format!("of {}, frozen again; its line was last made {}", parent.short(), named(order))
        }
    }
}

const UNVERIFIED: &str = "no: it was frozen by a patchlab that did not prove its freezes";

/// What a baseline stands for beside its packages; lists that are empty are not shown.
fn coverage(coverage: &Coverage) -> Vec<(&'static str, String)> {
    let boot = coverage.boot.map_or("unknown", BootMode::name);
    let flavour = coverage.flavour.as_ref().map_or_else(String::new, |flavour| format!(", kernel flavour {flavour}"));
    let module =
        |module: &DkmsModule| format!("{} {} for {}", module.name, module.version, module.kernels.join(" and "));
    let of_rpm = coverage.third_party_rpm.iter().map(dnf::sources::Repository::line);
    let third_party = coverage.third_party.iter().map(Repository::line).chain(of_rpm).collect();
    let lists = [
        ("dkms", coverage.dkms.iter().map(module).collect::<Vec<_>>()),
        ("third party", third_party),
        ("passed over", coverage.unclear.clone()),
        ("changed", coverage.changed.clone()),
        ("removed", coverage.removed.clone()),
    ];
    let lists = lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| (name, list.join(", ")));
    [("boots", format!("{boot}{flavour}"))].into_iter().chain(lists).collect()
}

/// What was done about secrets, on one line.
fn treated(secrets: &Secrets) -> String {
    let each: Vec<_> = secrets.found.iter().map(|secret| format!("{} ({})", secret.path, secret.kind.name())).collect();
    let more = secrets.extent.words();
    match (secrets.policy, each.as_slice()) {
        (_, []) => "none were found".into(),
        (SecretsPolicy::Scrub, each) => format!("scrubbed: {}{more}", each.join(", ")),
        (SecretsPolicy::Keep | SecretsPolicy::Refuse, each) => format!("kept: {}{more}", each.join(", ")),
    }
}

/// What whoever sends or takes one in must know of secrets; nothing where it holds none that are known.
pub(super) fn holds_secrets(record: &Record) -> Option<String> {
    kept(record.secrets.as_ref(), &record.full_name())
}

fn kept(secrets: Option<&Secrets>, name: &str) -> Option<String> {
    let kept = secrets.filter(|secrets| secrets.policy == SecretsPolicy::Keep)?;
    let (count, first) = (kept.found.len(), kept.found.first()?);
    let least = if kept.extent == Extent::All { "" } else { "at least " };
    Some(format!(
        "secrets that its recipe kept are in it ({least}{count}, {} among them): `patchlab baseline show {name}` names {}",
        first.path,
        if kept.extent == Extent::All { "all" } else { "these" },
    ))
}

/// What was shown of a freeze, on one line.
fn verified(verified: &Verified) -> String {
    let each = |value: fn(&baseline::Sibling) -> u64| {
        verified.siblings.iter().map(|sibling| value(sibling).to_string()).collect::<Vec<_>>().join(" and ")
    };
    format!(
        "{} clones at once, ready in {} ms, knew what only the memory held; a counter at {} went on to {}; neither saw what the other \
         wrote; the frozen files stayed as they were; nothing is left of it ({} ms)",
        verified.siblings.len(),
        each(|sibling| sibling.ready_ms),
        verified.counter,
        each(|sibling| sibling.later),
        verified.ms
    )
}

#[cfg(test)]
mod tests {
    use patchlab_lab::baseline::{Secret, SecretKind};

    use super::*;

    #[test]
    fn only_what_holds_secrets_still_is_told_to_hold_them() {
        let found = vec![Secret { path: "/etc/own.key".into(), kind: SecretKind::PrivateKey }];
        let with = |policy, found| kept(Some(&Secrets { policy, found, extent: Extent::All }), "web@1");
        assert!(with(SecretsPolicy::Keep, found.clone()).is_some_and(|told| told.contains("(1, /etc/own.key")));
        assert_eq!(with(SecretsPolicy::Scrub, found), None);
        assert_eq!(with(SecretsPolicy::Keep, vec![]), None);
        assert_eq!(kept(None, "web@1"), None);
        let found = vec![Secret { path: "/etc/own.key".into(), kind: SecretKind::PrivateKey }];
        let some = Secrets { policy: SecretsPolicy::Keep, found, extent: Extent::Part };
        assert!(kept(Some(&some), "web@1").is_some_and(|told| told.contains("(at least 1, /etc/own.key")));
        assert!(treated(&some).ends_with("(private key), and maybe more: no more than 1000 are named"));
    }
}
