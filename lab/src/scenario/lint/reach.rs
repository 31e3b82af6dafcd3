//! Time: which steps are not reached, or cannot have theirs, when everything before them takes as long as it may.

use std::{collections::BTreeMap, time::Duration};

use patchlab_check::{
    Step,
    step::{Errand, Kind},
};

/// The first of `steps` that is not reached when every wait and sleep before it, those of the fixtures' `set_up` too, takes as long as it may,
/// and those that alone may take longer than the whole `budget`: places, keys below them, and sentences.
pub(super) fn out_of_reach<'s>(
    set_up: impl IntoIterator<Item = &'s Step>,
    steps: &'s [Step],
    budget: Duration,
) -> Vec<(usize, &'static str, String)> {
    let mut waited = set_up.into_iter().map(longest).fold(Duration::ZERO, Duration::saturating_add);
    let mut found = Vec::new();
    // Until when steps may go on beside others, by the barrier at which they are awaited.
    let mut beside: BTreeMap<&str, Duration> = BTreeMap::new();
    for (index, step) in steps.iter().enumerate() {
        if waited >= budget {
            let problem = format!(
                "step {:?} may never be reached: waits and sleeps before it may take {} s, the scenario has {} s",
                step.name,
                waited.as_secs(),
                budget.as_secs()
            );
            found.push((index, "", problem));
            break;
        }
        let own = longest(step);
        if own > budget {
            let problem = format!(
                "step {:?} may wait {} s, longer than the {} s that the whole scenario has",
                step.name,
                own.as_secs(),
                budget.as_secs()
            );
            found.push((index, ".wait.limit", problem));
        }
        let end = waited.saturating_add(own);
        match &step.until {
            Some(barrier) => {
                let known = beside.entry(barrier).or_default();
                *known = end.max(*known);
            }
            None if step.kind == Kind::Errand(Errand::Barrier) => {
                waited = waited.max(beside.remove(step.name.as_str()).unwrap_or_default());
            }
            None => waited = end,
        }
    }
    found
}

/// How long a step may wait or sleep: not how long its commands may take, which is the timeouts' business.
fn longest(step: &Step) -> Duration {
    match &step.kind {
        Kind::Wait(wait) => wait.limit.0.saturating_mul(step.repeat.times()),
        Kind::Errand(Errand::Sleep(sleep)) => sleep.time.0,
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(all: &[&str]) -> Vec<Step> {
        let step = |text: &&str| serde_json::from_str(&format!("{{{text}}}")).unwrap();
        all.iter().map(step).collect()
    }

    fn wait(name: &str, limit: &str, more: &str) -> String {
        format!("\"name\":{name:?},\"wait\":{{\"until\":{{\"run\":\"true\"}},\"limit\":{limit:?}}}{more}")
    }

    fn found(set_up: &[&str], all: &[&str]) -> Vec<String> {
        let (set_up, all) = (steps(set_up), steps(all));
        out_of_reach(&set_up, &all, Duration::from_secs(60)).into_iter().map(|(_, _, problem)| problem).collect()
    }

    #[test]
    fn what_goes_on_beside_others_takes_no_time_of_theirs() {
        let (beside, other) = (wait("a", "40s", ",\"until\":\"end\""), wait("b", "40s", ""));
        let (barrier, last) = ("\"name\":\"end\",\"barrier\":true", "\"name\":\"last\",\"run\":\"true\"");
        assert_eq!(found(&[], &[&beside, &other, barrier, last]), Vec::<String>::new());
        let late = wait("c", "30s", ",\"until\":\"end\"");
        let told = found(&[], &[&other, &late, barrier, last]);
        assert!(told.len() == 1 && told[0].starts_with("step \"last\" may never be reached: "), "{told:?}");
    }

    #[test]
    fn a_fixture_takes_time_and_a_last_step_may_want_too_much() {
        let last = "\"name\":\"last\",\"run\":\"true\"";
        assert_eq!(found(&[&wait("up", "60s", "")], &[last]).len(), 1);
        assert_eq!(found(&[&wait("up", "59s", "")], &[last]), Vec::<String>::new());
        let told = found(&[], &[&wait("long", "90s", "")]);
        assert_eq!(told, ["step \"long\" may wait 90 s, longer than the 60 s that the whole scenario has"]);
    }
}
