//! The reboot that an order asks for, after the change and before its checks. It is journaled before it is asked for, and
//! the run goes on in the agent that starts after it.

use std::{
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Audience,
    document::{Action, Checks, Order, REBOOT_ASKED_PERCENT, RebootRule, RebootWhen, RunState},
    enrolment::PendingReboot,
    inventory::Transaction,
};

use super::{
    attempt::{Attempt, Stop, blocking, unfit},
    now,
    way_back::TurnedBack,
};
use crate::{
    boot::{self, Expected},
    fetch,
    hooks::Site,
    host,
    packages::pending_offline,
    process,
    state::{Reboot, Rebooting},
};

/// How long it may take to ask for a reboot.
const ASKING: Duration = Duration::from_secs(30);
/// How long a machine of the lab waits for the lab's reboot, minutes: its scenarios run before it.
const LAB_GRACE_MINUTES: u16 = 24 * 60;
/// Longest time between two looks at the clock: it may be set.
const CLOCK: Duration = Duration::from_secs(30);
/// How long services may take to start after a boot, and no more than half of the run's own time: the rest is the checks'.
const STARTING: Duration = Duration::from_secs(15 * 60);
/// Time between two looks at what systemd says, where it does not wait by itself.
const PAUSE: Duration = Duration::from_secs(1);
/// What is kept of what shutdown(8) says, bytes.
const OUTPUT_BYTES: u64 = 16 * 1024;

/// Who reboots the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// It does so itself.
    Host(RebootRule),
    /// The lab, which reboots both clones and compares them then.
    Lab,
}

/// Who reboots the host before the run goes on; nobody, when it is not to reboot. A machine of the lab never does so itself, and its run
/// waits only for the reboot that takes a new kernel: that is a part of what is proven.
fn asker(order: &Order, asked: Reboot, audience: Audience, kernel: Option<&Expected>) -> Option<Asker> {
    let wanted = |rule: &RebootRule| rule.when == RebootWhen::Always || asked == Reboot::Needed;
    match audience {
        Audience::Production => order.reboot.filter(wanted).map(Asker::Host),
        Audience::Lab => kernel.map(|_| Asker::Lab),
    }
}

/// systemd's own shutdown, which tells every logged-in user. A system below a root of its own is never this machine.
fn shutdown(root: &Path, order: &Order, grace_minutes: u16) -> Command {
    let own = root == Path::new("/");
    let mut command = if own { Command::new("shutdown") } else { Command::new(root.join("sbin/shutdown")) };
    let message = format!("patchlab: order {} ({}) reboots this host", order.id, order.title);
    command.args(["-r", &format!("+{grace_minutes}"), &message]).env("LC_ALL", "C").current_dir("/");
    command
}

/// Whether an order's reboot is to take nothing along that waits for one already.
fn is_alone(order: &Order, action: Action, audience: Audience, wish: PendingReboot) -> bool {
    // The lab reboots clones of a machine as it was frozen, whatever waited there.
    let reboots = action == Action::Apply && order.reboot.is_some() && audience == Audience::Production;
    reboots && wish == PendingReboot::Refuse
}

impl Attempt<'_> {
    /// Whether nothing waits for a reboot already that the order's own would take along.
    ///
    /// # Errors
    /// When something does, or that cannot be said.
    pub async fn fit_to_reboot(&self, order: &Order, action: Action) -> Result<(), Stop> {
        if !is_alone(order, action, self.engine.trust.root().audience, self.engine.pending_reboot) {
            return Ok(());
        }
        let (packages, root) = (Arc::clone(&self.engine.packages), self.engine.target.root().to_owned());
        let waits = blocking(move || -> Result<_, Stop> {
            let kernel = boot::awaited(&root).map_err(|error| unfit(format!("look for kernels: {error}")))?;
            let asked = packages.reboot(&Transaction::new(packages.system(), [])) == Reboot::Needed;
            let who = packages.system().map_or("the host", |system| system.name());
            Ok(kernel
                .map(|kernel| format!("kernel {kernel} was installed since the last boot"))
                .or_else(|| pending_offline(&root))
                .or_else(|| asked.then(|| format!("{who} says that a reboot is needed"))))
        });
        match waits.await?? {
            None => Ok(()),
            Some(waits) => Err(unfit(format!(
                "{waits}, and this order reboots the host: what waits was not in the lab. Reboot it first, or set pending_reboot = \
                 \"take-along\" under [boot] in agent.toml"
            ))),
        }
    }

    /// Reboots the host if the order asks for it, into a new kernel only once. Comes back at once when it does not; otherwise only when the reboot
    /// never came, because the agent ends with the boot.
    ///
    /// # Errors
    /// When the host cannot be rebooted, or did not reboot in time.
    pub async fn reboot(&self, order: &Order) -> Result<(), Stop> {
        let kernel = self.expect_kernel().await?;
        let row = self.engine.record.read(|state| state.run(self.order, self.run).cloned());
        let asked = row.map_or(Reboot::NotNeeded, |row| row.reboot);
        let audience = self.engine.trust.root().audience;
        let Some(asker) = asker(order, asked, audience, kernel.as_ref()) else { return Ok(()) };
        let root = self.engine.target.root();
        let boot = host::boot_id(root).map_err(|error| Stop::failed(format!("this boot has no name: {error}")))?;
        let grace = Duration::from_secs(u64::from(asker.grace_minutes()) * 60);
        let longest = i64::try_from((grace + self.lifetime).as_millis()).unwrap_or(i64::MAX);
        let rebooting = Rebooting { boot, asked: None, by: now().saturating_add(longest) };
        self.change(|run| {
            run.state = RunState::Rebooting;
            run.percent = 88;
            "about to reboot".clone_into(&mut run.phase);
            run.rebooting = Some(rebooting.clone());
        })?;
        self.ask(order, asker).await?;
        self.await_boot(&rebooting).await
    }

    /// Asks for the reboot, and remembers that; the boot loader is told first what it is to take.
    async fn ask(&self, order: &Order, asker: Asker) -> Result<(), Stop> {
        self.boot_once().await?;
        let phase = match asker {
            Asker::Host(rule) => {
                self.shut_down(order, rule).await?;
                format!("reboots in {} min", rule.grace_minutes)
            }
            Asker::Lab => "waits for the lab's reboot".to_owned(),
        };
        self.change(|run| {
            run.phase = phase;
            run.percent = REBOOT_ASKED_PERCENT;
            if let Some(rebooting) = &mut run.rebooting {
                rebooting.asked = Some(now());
            }
        })?;
        Ok(())
    }

    async fn shut_down(&self, order: &Order, rule: RebootRule) -> Result<(), Stop> {
        let root = self.engine.target.root();
        let mut command = shutdown(root, order, rule.grace_minutes);
        let asked = blocking(move || process::run(&mut command, Instant::now() + ASKING, OUTPUT_BYTES, |_| {})).await?;
        match asked {
            Ok(finished) if finished.succeeded() => Ok(()),
            Ok(finished) => Err(Stop::failed(format!("shutdown failed: {}", finished.last_words()))),
            Err(error) => Err(Stop::failed(format!("shutdown cannot be run: {error}"))),
        }
    }

    /// Waits until the boot that was asked for must have come.
    async fn await_boot(&self, rebooting: &Rebooting) -> Result<(), Stop> {
        while let Some(left) = u64::try_from(rebooting.by - now()).ok().filter(|left| *left > 0) {
            tokio::time::sleep(Duration::from_millis(left).min(CLOCK)).await;
        }
        Err(Stop::failed("the host did not reboot in the grace period and the run's lifetime after it"))
    }

    /// Goes on after a reboot, or with the wait for it when only the agent was started again.
    ///
    /// # Errors
    /// When the reboot did not come, or a check fails.
    pub async fn go_on_after_reboot(mut self) -> Result<(RunState, Checks), Stop> {
        let digest = self.columns.digest;
        let fetched = || fetch::kept_document(&self.folder.join(format!("{digest}.json")), &digest);
        let order =
            self.engine.staged.order(&digest).or_else(fetched).and_then(|order| order.statement::<Order>().ok());
        let order = order.ok_or_else(|| Stop::failed("the order's document is not there any more"))?.predicate;
        self.name(&order);
        // To the run's end: what an updater does between, nobody proved.
        let mut others = None;
        let done = match self.booted(&order).await {
            Ok(()) => match self.keep_others_away().await {
                Ok(paused) => {
                    others = Some(paused);
                    self.check_and_confirm(&order).await
                }
                Err(stop) => Err(stop),
            },
            Err(stop) => Err(stop),
        };
        match done {
            Ok(checks) => Ok((RunState::Succeeded, checks)),
            Err(stop) if self.turn_back(&stop)? == TurnedBack::No => Err(stop),
            Err(_) => {
                let _others = match others {
                    Some(paused) => paused,
                    None => self.keep_others_away().await?,
                };
                Ok((RunState::RolledBack, self.walk_back(&order, digest, Site::Untouched).await?))
            }
        }
    }

    async fn check_and_confirm(&self, order: &Order) -> Result<Checks, Stop> {
        let checks = self.check(order, Action::Apply).await?;
        self.confirm_kernel().await?;
        Ok(checks)
    }

    async fn booted(&self, order: &Order) -> Result<(), Stop> {
        let row = self.engine.record.read(|state| state.run(self.order, self.run).cloned());
        let kernel = row.as_ref().and_then(|row| row.boot.as_ref()?.new.clone());
        let rebooting = row.and_then(|row| row.rebooting).ok_or_else(|| Stop::failed("no reboot was asked for"))?;
        let boot = host::boot_id(self.engine.target.root());
        let boot = boot.map_err(|error| Stop::failed(format!("this boot has no name: {error}")))?;
        if boot == rebooting.boot {
            // Killed between journal and shutdown: to ask twice would only give users more time, not to ask at all nothing.
            let audience = self.engine.trust.root().audience;
            let asker = asker(order, Reboot::Needed, audience, kernel.as_ref());
            if let (None, Some(asker)) = (rebooting.asked, asker) {
                self.ask(order, asker).await?;
            }
            return self.await_boot(&rebooting).await;
        }
        tracing::info!(order = self.order, run = self.run, %boot, "the host has booted");
        let packages = &self.engine.packages;
        let reboot = packages.reboot(&Transaction::new(packages.system(), []));
        self.change(|run| run.reboot = reboot)?;
        self.came_up()?;
        self.await_services().await
    }

    /// Waits until everything has started that starts with the boot: the agent is there before most of what an order's checks look at. What
    /// never ends to start is not waited for for ever; the checks tell what is missing.
    async fn await_services(&self) -> Result<(), Stop> {
        let root = self.engine.target.root().to_owned();
        // sd_booted(3)
        if !root.join("run/systemd/system").is_dir() {
            return Ok(());
        }
        self.change(|run| "waits for what starts with the boot".clone_into(&mut run.phase))?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let deadline = Instant::now() + STARTING.min(left / 2);
        let waited = blocking(move || {
            loop {
                let seen = process::run(&mut systemd_state(&root), deadline, OUTPUT_BYTES, |_| {})?;
                let is_starting = matches!(seen.stdout.trim(), "initializing" | "starting");
                if !is_starting || Instant::now() + PAUSE >= deadline {
                    return Ok::<_, std::io::Error>(seen);
                }
                // Before systemd 240, it says how things stand and does not wait.
                std::thread::sleep(PAUSE);
            }
        });
        match waited.await? {
            Ok(seen) => tracing::info!(systemd = seen.stdout.trim(), "services have started"),
            Err(error) => tracing::warn!(%error, "systemd does not say whether services have started"),
        }
        Ok(())
    }
}

/// Asks systemd how the boot stands, and waits until it is over.
fn systemd_state(root: &Path) -> Command {
    let own = root == Path::new("/");
    let mut command = if own { Command::new("systemctl") } else { Command::new(root.join("bin/systemctl")) };
    command.args(["is-system-running", "--wait"]).env("LC_ALL", "C").current_dir("/");
    command
}

impl Asker {
    /// How long users, or the lab's scenarios, have until the reboot.
    fn grace_minutes(self) -> u16 {
        match self {
            Self::Host(rule) => rule.grace_minutes,
            Self::Lab => LAB_GRACE_MINUTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::packages::tests::order;

    #[test]
    fn a_host_reboots_when_the_order_says_so_and_in_the_lab_never_by_itself() {
        let with = |when| Order { reboot: Some(RebootRule { when, grace_minutes: 3 }), ..order() };
        let found = |order: &Order, asked, audience| asker(order, asked, audience, None).is_some();
        let (production, lab) = (Audience::Production, Audience::Lab);
        assert!(!found(&order(), Reboot::Needed, production), "an order that does not say so");
        use PendingReboot::{Refuse, TakeAlong};
        let rebooting = with(RebootWhen::IfNeeded);
        assert!(is_alone(&rebooting, Action::Apply, production, Refuse));
        assert!(!is_alone(&rebooting, Action::Apply, production, TakeAlong));
        assert!(!is_alone(&rebooting, Action::Apply, lab, Refuse), "a clone is as its baseline was");
        assert!(!is_alone(&rebooting, Action::Rollback, production, Refuse), "the way back stays open");
        assert!(!is_alone(&order(), Action::Apply, production, Refuse), "an order that does not reboot");
        assert!(found(&with(RebootWhen::IfNeeded), Reboot::Needed, production));
        assert!(!found(&with(RebootWhen::IfNeeded), Reboot::NotNeeded, production));
        assert!(found(&with(RebootWhen::Always), Reboot::NotNeeded, production));
        assert!(!found(&with(RebootWhen::Always), Reboot::Needed, lab));
        // What is proven of a new kernel is that the run goes on with it.
        let kernel = Expected { release: "6.2".into(), entry: "linux-6.2".into() };
        assert_eq!(asker(&order(), Reboot::Needed, lab, Some(&kernel)), Some(Asker::Lab));
        assert_eq!(asker(&order(), Reboot::Needed, production, Some(&kernel)), None);
    }

    #[test]
    fn a_system_below_a_root_of_its_own_is_not_this_machine() {
        let words = |root: &str| {
            let command = shutdown(Path::new(root), &order(), 5);
            let arguments: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
            (command.get_program().to_string_lossy().into_owned(), arguments[..2].join(" "))
        };
        assert_eq!(words("/"), ("shutdown".to_owned(), "-r +5".to_owned()));
        assert_eq!(words("/srv/x").0, "/srv/x/sbin/shutdown");
    }
}
