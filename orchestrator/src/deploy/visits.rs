//! Every host is visited: at once when it is enrolled, when it rings, and when something is owed to it; later each time while it does
//! not answer or refuses; and once an hour when all is well. A visit brings it what it is owed ([`super::offers`]), and reads what
//! changed there ([`super::survey`]).
//!
//! Who is owed what stands in the store, so a server that was killed goes on. When a host is visited again stands here only.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use tokio::{task::JoinSet, time::Instant};

use super::{
    manager::Manager,
    offers::{OfferError, Offers},
    own,
    survey::{self, Looked},
};
use crate::store::{Host, OfferState, Survey};

/// Most hosts that are visited at the same time.
const AT_ONCE: usize = 16;
/// Time until a host that did not take what it is owed is visited again; doubled each time.
const AGAIN: Duration = Duration::from_secs(2);
/// Longest time between two tries.
const AGAIN_AT_LAST: Duration = Duration::from_secs(600);
/// Time until a host where all is well is visited again.
const ROUND: Duration = Duration::from_secs(3600);
/// Time until a store that could not be read is read again.
const STORE_AGAIN: Duration = Duration::from_secs(10);
/// How old the week that is known of a host may be: it learns an hour at a time.
const WEEK_AGE: Duration = Duration::from_secs(24 * 3600);

/// When a host is visited next.
#[derive(Debug, Clone, Copy)]
struct Next {
    failures: u32,
    at: Instant,
}

/// Visits hosts, for ever.
pub async fn run(offers: Offers) {
    let mut rounds = Rounds::default();
    let mut under_way: JoinSet<(String, Result<OfferState, OfferError>)> = JoinSet::new();
    let mut changes = offers.authority.changes();
    loop {
        changes.borrow_and_update();
        let hosts = match offers.store.hosts() {
            Ok(hosts) => hosts,
            Err(error) => {
                // A revocation must reach hosts whenever the store can be read again.
                tracing::error!(%error, "hosts are not visited now: they are not told of new roots and revocations");
                tokio::time::sleep(STORE_AGAIN).await;
                continue;
            }
        };
        for host in hosts {
            if under_way.len() < AT_ONCE && rounds.begin(&host.enrolled.name, Instant::now()) {
                let offers = offers.clone();
                under_way.spawn(async move {
                    let result = visit(&offers, &host).await;
                    (host.enrolled.name, result)
                });
            }
        }
        let until = rounds.next_at(Instant::now());
        tokio::select! {
            Some(done) = under_way.join_next(), if !under_way.is_empty() => match done {
                Ok((name, result)) => rounds.end(name, &result, Instant::now()),
                // A visit that panicked said so; its host is visited with the others.
                Err(_) => rounds.forget(),
            },
            changed = changes.changed() => match changed {
                Ok(()) => rounds.all_again(),
                Err(_) => return,
            },
            heard = offers.bells.heard() => heard.iter().for_each(|host| rounds.again(host)),
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

/// Which hosts are being visited, and when the others are.
#[derive(Debug, Default)]
struct Rounds {
    next: BTreeMap<String, Next>,
    /// Hosts that are being visited, and whether something happened meanwhile that asks for another visit.
    under_way: BTreeMap<String, Meanwhile>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    Something,
}

impl Rounds {
    /// Begins a visit, if the host is due and not being visited.
    fn begin(&mut self, host: &str, now: Instant) -> bool {
        let due = self.next.get(host).is_none_or(|next| next.at <= now);
        if !due || self.under_way.contains_key(host) {
            return false;
        }
        self.under_way.insert(host.to_owned(), Meanwhile::Nothing);
        true
    }

    /// A visit ended.
    fn end(&mut self, host: String, result: &Result<OfferState, OfferError>, now: Instant) {
        let failures = match result {
            Ok(OfferState::Current) => 0,
            other => {
                if let Err(error) = other {
                    tracing::debug!(%error, host, "visit");
                }
                self.next.get(&host).map_or(0, |next| next.failures).saturating_add(1)
            }
        };
        // What happened since it began, the visit may not have seen.
        match self.under_way.remove(&host) {
            Some(Meanwhile::Something) => drop(self.next.remove(&host)),
            _ => drop(self.next.insert(host, Next { failures, at: now + pause(failures) })),
        }
    }

    /// A host is visited at once.
    fn again(&mut self, host: &str) {
        self.next.remove(host);
        self.under_way.entry(host.to_owned()).and_modify(|meanwhile| *meanwhile = Meanwhile::Something);
    }

    /// Every host is visited at once.
    fn all_again(&mut self) {
        self.next.clear();
        self.under_way.values_mut().for_each(|meanwhile| *meanwhile = Meanwhile::Something);
    }

    fn forget(&mut self) {
        self.next.clear();
        self.under_way.clear();
    }

    /// When the next visit is due.
    fn next_at(&self, now: Instant) -> Instant {
        let waiting = self.next.iter().filter(|(host, _)| !self.under_way.contains_key(*host));
        waiting.map(|(_, next)| next.at).min().unwrap_or(now + ROUND).max(now + Duration::from_millis(10))
    }
}

async fn visit(offers: &Offers, host: &Host) -> Result<OfferState, OfferError> {
    let manager = offers.manager(host).await?;
    let state = offers.bring(host, &manager).await?;
    own::take_in(&offers.store, host, &manager).await?;
    look(offers, host, &manager).await?;
    Ok(state)
}

/// Reads what changed on a host.
async fn look(offers: &Offers, host: &Host, manager: &dyn Manager) -> Result<(), OfferError> {
    let (store, name) = (&offers.store, &host.enrolled.name);
    let Survey { packages: known, description, .. } = store.survey(name)?;
    match survey::packages(manager, &known).await? {
        Looked::Same => {}
        Looked::Moved => tracing::debug!(host = name, "its packages changed while they were read"),
        Looked::Changed { packages, rows } => {
            tracing::debug!(host = name, rows, "its packages changed");
            store.keep_packages(name, &packages, Timestamp::now())?;
        }
    }
    let read = store.week_read_at(name)?.and_then(|at| at.parse::<Timestamp>().ok());
    if read.is_none_or(|at| Timestamp::now().duration_since(at).unsigned_abs() >= WEEK_AGE) {
        store.keep_week(name, &survey::week(manager).await?, Timestamp::now())?;
    }
    match survey::described(manager, description.map(|known| known.digest)).await {
        Ok(Some(described)) => store.keep_description(name, &described, Timestamp::now())?,
        Ok(None) => {}
        // A busy host may look at itself for longer than an answer is waited for, and has seen itself then: nothing else waits for that.
        Err(error) => tracing::debug!(host = name, %error, "it does not say what it is and does"),
    }
    Ok(())
}

/// How long until the next visit after so many that failed.
fn pause(failures: u32) -> Duration {
    match failures {
        0 => ROUND,
        failures => AGAIN.saturating_mul(1 << (failures - 1).min(16)).min(AGAIN_AT_LAST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::DeployError;

    fn silent() -> Result<OfferState, OfferError> {
        Err(OfferError::Deploy(DeployError::NoRun { run: 1 }))
    }

    #[test]
    fn a_host_that_does_not_answer_is_visited_less_and_less_often_and_never_given_up() {
        let waits: Vec<u64> = (0..12).map(|failures| pause(failures).as_secs()).collect();
        assert_eq!(waits, [3600, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        assert_eq!(pause(u32::MAX), AGAIN_AT_LAST);
        let (mut rounds, mut now) = (Rounds::default(), Instant::now());
        for (result, wait) in
            [(silent(), 2), (silent(), 4), (Ok(OfferState::Refused), 8), (Ok(OfferState::Current), 3600), (silent(), 2)]
        {
            assert!(rounds.begin("web-1", now) && !rounds.begin("web-1", now), "one visit at a time");
            rounds.end("web-1".into(), &result, now);
            assert_eq!(rounds.next_at(now), now + Duration::from_secs(wait));
            assert!(!rounds.begin("web-1", now));
            now += Duration::from_secs(wait);
        }
    }

    #[test]
    fn what_happens_during_a_visit_asks_for_another() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        let happens: [fn(&mut Rounds); 2] = [|rounds| rounds.again("web-1"), Rounds::all_again];
        for happens in happens {
            assert!(rounds.begin("web-1", now));
            happens(&mut rounds);
            assert!(!rounds.begin("web-1", now), "it is still there");
            rounds.end("web-1".into(), &Ok(OfferState::Current), now);
            assert!(rounds.begin("web-1", now), "and comes again");
            rounds.end("web-1".into(), &Ok(OfferState::Current), now);
            assert!(!rounds.begin("web-1", now));
            happens(&mut rounds);
        }
        rounds.again("web-2");
        assert!(!rounds.under_way.contains_key("web-2"), "who is not visited is not held to be");
    }
}
