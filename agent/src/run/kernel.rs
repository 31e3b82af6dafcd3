//! The kernel that a run brings: before the change the one that runs is made the default, the reboot takes the new one once, and the run
//! confirms it when it runs and the checks passed. What is decided is [`crate::boot`]'s; here it is journaled, and then done.

use patchlab_protocol::{
    Audience,
    document::{Action, Order, Release, RunState},
    enrolment::{Uncovered, WithoutFallback},
    inventory::Transaction,
};

use super::{
    Engine,
    attempt::{Attempt, Stop, blocking, unfit},
    work::Work,
};
use crate::{
    boot::{self, BootError, BootOnce, Expected, Found, Kernels, Loader, Rest, Told, Unable},
    preflight::Kernel,
    state::{Reboot, Run},
};

/// What a run has to do with kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stakes {
    /// Nothing: it does not reboot.
    None,
    /// It reboots, and no package of it is known to bring a kernel.
    Reboot,
    /// It reboots into a new kernel.
    Kernel,
}

fn stakes(order: &Order, action: Action, transaction: &Transaction, audience: Audience) -> Stakes {
    // The lab reboots whatever the order says.
    let reboots = action == Action::Apply && (order.reboot.is_some() || audience == Audience::Lab);
    match Kernel::of(transaction) {
        _ if !reboots => Stakes::None,
        Kernel::New => Stakes::Kernel,
        Kernel::AsIs => Stakes::Reboot,
    }
}

/// What becomes of a run whose kernel could not be come back from. A machine of the lab is nobody's: there it goes on.
fn goes_on(audience: Audience, wish: WithoutFallback) -> WithoutFallback {
    if audience == Audience::Lab { WithoutFallback::GoOn } else { wish }
}

/// The boot loader, when it can boot once, and what to remember.
fn look(root: &std::path::Path) -> Result<Result<(Loader, BootOnce), Unable>, BootError> {
    let file = |source| BootError::File { action: "look for kernels below", path: root.to_owned(), source };
    let loader = match boot::open(root)? {
        Ok(loader) => loader,
        Err(unable) => return Ok(Err(unable)),
    };
    let found = Found {
        running: boot::running(root).map_err(file)?,
        kernels: Kernels::look(root).map_err(file)?,
        menu: loader.menu()?,
        default: loader.default_entry()?,
    };
    Ok(boot::pin(found).map(|once| (loader, once)))
}

impl Attempt<'_> {
    fn row(&self) -> Option<Run> {
        self.engine.record.read(|state| state.run(self.order, self.run).cloned())
    }

    /// What a boot loader cannot do either ends the run or is remembered for its result, as the host's configuration says.
    fn without_fallback(&self, unable: &Unable, stop: impl FnOnce(String) -> Stop) -> Result<(), Stop> {
        match goes_on(self.audience(), self.engine.without_fallback) {
            WithoutFallback::Refuse => Err(stop(format!("a new kernel could not be booted once: {unable}"))),
            WithoutFallback::GoOn => {
                tracing::warn!(order = self.order, run = self.run, %unable, "a kernel without a way back");
                self.change(|run| run.unprotected = Some(unable.to_string()))?;
                Ok(())
            }
        }
    }

    async fn look(&self) -> Result<Result<(Loader, BootOnce), Unable>, Stop> {
        let root = self.engine.target.root().to_owned();
        blocking(move || look(&root)).await?.map_err(unfit)
    }

    /// Whether the host could come back from a kernel that the order brings.
    ///
    /// # Errors
    /// When it could not, and is configured to refuse then.
    pub async fn fit_to_fall_back(&self, order: &Order, action: Action, transaction: &Transaction) -> Result<(), Stop> {
        if stakes(order, action, transaction, self.audience()) != Stakes::Kernel {
            return Ok(());
        }
        match self.look().await? {
            Ok(_) => Ok(()),
            Err(unable) => self.without_fallback(&unable, unfit),
        }
    }

    /// Whether a kernel that an order brings was proven on what this host boots.
    ///
    /// # Errors
    /// When it was not, and the host is configured to refuse then.
    pub async fn fit_to_boot(
        &self,
        action: Action,
        transaction: &Transaction,
        release: Option<&Release>,
    ) -> Result<(), Stop> {
        let Some(release) = release.filter(|_| action == Action::Apply && Kernel::of(transaction) == Kernel::New)
        else {
            return Ok(());
        };
        let root = self.engine.target.root().to_owned();
        let here = blocking(move || boot::here(&root)).await?;
        let here = here.map_err(|error| unfit(format!("look at what this host boots: {error}")))?;
        let Some(uncovered) = boot::uncovered(&here, release.boots()) else { return Ok(()) };
        let reason = format!("the order brings a kernel, which was proven {uncovered}");
        match self.engine.uncovered {
            Uncovered::Refuse => Err(unfit(format!(
                "{reason}: prove it on a baseline that boots as this host does, or set uncovered = \"go-on\" under [boot] in agent.toml"
            ))),
            Uncovered::GoOn => {
                tracing::warn!(order = self.order, run = self.run, reason, "this host boots otherwise");
                Ok(())
            }
        }
    }

    /// Makes the kernel that runs the default, before the change: whatever is cut off from here on, the host comes up with it.
    ///
    /// # Errors
    /// When the boot loader cannot be told, or cannot come back and the host is configured to refuse then.
    pub async fn pin(&self, work: &Work) -> Result<(), Stop> {
        let stakes = stakes(&work.order, work.action, &work.transaction, self.audience());
        let (loader, once) = match (stakes, self.look().await) {
            (Stakes::None, _) | (Stakes::Reboot, Ok(Err(_)) | Err(_)) => return Ok(()),
            (Stakes::Kernel, Ok(Err(unable))) => return self.without_fallback(&unable, unfit),
            (_, Ok(Ok(found))) => found,
            (Stakes::Kernel, Err(stop)) => return Err(stop),
        };
        let told = if stakes == Stakes::Kernel { Told::OldKernel } else { Told::Nothing };
        let entry = once.entry.clone();
        self.change(|run| run.boot = Some(BootOnce { told, ..once }))?;
        match told {
            Told::Nothing => Ok(()),
            _ => tell(move || loader.set_default(Some(&entry))).await.map_err(unfit),
        }
    }

    /// The kernel that the next boot is to take, now that the change was made; journaled, not yet told.
    ///
    /// # Errors
    /// When the host could not come back from it, and is configured to refuse then.
    pub async fn expect_kernel(&self) -> Result<Option<Expected>, Stop> {
        let Some(once) = self.row().and_then(|row| row.boot) else { return Ok(None) };
        let root = self.engine.target.root().to_owned();
        let before = once.clone();
        let armed = blocking(move || -> Result<_, BootError> {
            let file = |source| BootError::File { action: "look for kernels below", path: root.clone(), source };
            let now = Kernels::look(&root).map_err(file)?;
            Ok(match boot::open(&root)? {
                Ok(loader) => boot::arm(&before, &now, &loader.menu()?),
                Err(unable) => Err(unable),
            })
        });
        match armed.await?.map_err(Stop::failed)? {
            Ok(Some(expected)) => {
                let new = expected.clone();
                self.change(|run| {
                    run.reboot = Reboot::Needed;
                    run.boot = Some(BootOnce { told: Told::OldKernel, new: Some(new), ..once });
                })?;
                Ok(Some(expected))
            }
            Ok(None) => {
                self.release(once).await?;
                Ok(None)
            }
            Err(unable) => {
                self.without_fallback(&unable, Stop::failed)?;
                self.release(once).await?;
                Ok(None)
            }
        }
    }

    /// Nothing is booted once: the default is as before.
    async fn release(&self, once: BootOnce) -> Result<(), Stop> {
        if once.told != Told::Nothing {
            let (root, before) = (self.engine.target.root().to_owned(), once.before.clone());
            tell(move || with(&root, |loader| loader.set_default(before.as_deref()))).await.map_err(Stop::failed)?;
        }
        self.change(|run| run.boot = None)?;
        Ok(())
    }

    /// Has the next boot take the kernel that is expected, once. May be done again.
    ///
    /// # Errors
    /// When the boot loader cannot be told.
    pub async fn boot_once(&self) -> Result<(), Stop> {
        let Some(once) = self.row().and_then(|row| row.boot) else { return Ok(()) };
        let Some(Expected { release, entry }) = once.new else { return Ok(()) };
        tracing::info!(
            order = self.order,
            run = self.run,
            old = once.old,
            new = release,
            "the next boot takes a new kernel, once"
        );
        let (root, old) = (self.engine.target.root().to_owned(), once.entry);
        let both = move |loader: &Loader| loader.set_default(Some(&old)).and_then(|()| loader.set_once(&entry));
        tell(move || with(&root, both)).await.map_err(Stop::failed)
    }

    /// Whether the host came up with the kernel that was to run.
    ///
    /// # Errors
    /// When it fell back, or another kernel runs.
    pub fn came_up(&self) -> Result<(), Stop> {
        let Some(once) = self.row().and_then(|row| row.boot) else { return Ok(()) };
        let running = boot::running(self.engine.target.root());
        let running = running.map_err(|error| Stop::failed(format!("the kernel that runs has no name: {error}")))?;
        boot::came_up(&once, &running).map_err(Stop::failed)
    }

    /// Makes the new kernel the default: it runs, and the checks passed.
    ///
    /// # Errors
    /// When the boot loader cannot be told: the old kernel stays the default.
    pub async fn confirm_kernel(&self) -> Result<(), Stop> {
        let Some(once) = self.row().and_then(|row| row.boot) else { return Ok(()) };
        let Some(expected) = once.new.clone() else { return Ok(()) };
        self.change(|run| {
            run.phase = format!("confirms kernel {}", expected.release);
            run.boot = Some(BootOnce { told: Told::NewKernel, ..once.clone() });
        })?;
        tracing::info!(order = self.order, run = self.run, kernel = expected.release, "kernel confirmed");
        let root = self.engine.target.root().to_owned();
        let confirm = move |loader: &Loader| {
            let default = boot::confirmed(&once, &expected, &loader.menu()?);
            loader.set_default(default.as_deref())
        };
        tell(move || with(&root, confirm)).await.map_err(Stop::failed)
    }
}

/// Tells the boot loader something, off the runtime.
async fn tell(work: impl FnOnce() -> Result<(), BootError> + Send + 'static) -> Result<(), String> {
    match blocking(work).await {
        Ok(told) => told.map_err(|error| error.to_string()),
        Err(stop) => Err(stop.to_string()),
    }
}

fn with(root: &std::path::Path, work: impl FnOnce(&Loader) -> Result<(), BootError>) -> Result<(), BootError> {
    match boot::open(root)? {
        Ok(loader) => work(&loader),
        // Found before, and gone since.
        Err(unable) => Err(BootError::Program { program: "the boot loader".into(), reason: unable.to_string() }),
    }
}

impl Engine {
    /// Leaves the boot loader as a run that ended may leave it. What cannot be told is said in the log: the old kernel is the default.
    pub(super) async fn rest_boot_loader(&self, row: &Run, ended: RunState) {
        let Some(once) = row.boot.clone() else { return };
        let root = self.target.root().to_owned();
        let rest = move || -> Result<(), BootError> {
            let file = |source| BootError::File { action: "look for kernels below", path: root.clone(), source };
            let now = Kernels::look(&root).map_err(file)?;
            match boot::rest(&once, ended, &now) {
                None => Ok(()),
                Some(Rest::AsBefore) => with(&root, |loader| loader.set_default(once.before.as_deref())),
                Some(Rest::OldKernel) => with(&root, |loader| loader.set_default(Some(&once.entry))),
            }
        };
        if let Err(error) = tell(rest).await {
            tracing::warn!(error, "the boot loader could not be left as it was");
        }
    }
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{
        PackageSystem,
        document::{RebootRule, RebootWhen},
        inventory::{Change, PackageId},
    };

    use super::*;
    use crate::change::packages::tests::order;

    fn transaction(name: &str) -> Transaction {
        let id = PackageId::new(name, "amd64");
        Transaction::new(PackageSystem::Dpkg, [Change { id, from: None, to: Some("1".into()) }])
    }

    #[test]
    fn a_kernel_is_at_stake_when_the_run_reboots_into_it() {
        let reboots = Order { reboot: Some(RebootRule { when: RebootWhen::IfNeeded, grace_minutes: 0 }), ..order() };
        let [kernel, other] = ["linux-image-6.1.0-51-amd64", "web"].map(transaction);
        let (apply, production, lab) = (Action::Apply, Audience::Production, Audience::Lab);
        assert_eq!(stakes(&reboots, apply, &kernel, production), Stakes::Kernel);
        assert_eq!(stakes(&reboots, apply, &other, production), Stakes::Reboot);
        assert_eq!(stakes(&order(), apply, &kernel, production), Stakes::None, "the site reboots it, as it likes");
        assert_eq!(stakes(&order(), apply, &kernel, lab), Stakes::Kernel);
        assert_eq!(stakes(&reboots, Action::Rollback, &kernel, lab), Stakes::None);
    }

    #[test]
    fn only_a_machine_of_the_lab_goes_on_without_a_way_back_unless_its_host_says_so() {
        use WithoutFallback::{GoOn, Refuse};
        assert_eq!(WithoutFallback::default(), Refuse);
        for (audience, wish, becomes) in
            [(Audience::Production, Refuse, Refuse), (Audience::Production, GoOn, GoOn), (Audience::Lab, Refuse, GoOn)]
        {
            assert_eq!(goes_on(audience, wish), becomes, "{audience:?} {wish:?}");
        }
    }
}
