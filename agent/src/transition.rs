//! How a run moves: the only function that says which state may follow which.

use patchlab_protocol::document::RunState;

/// A run cannot move like this: a fault of the agent, never of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run cannot go from {} to {}", from.name(), to.name())]
pub struct TransitionError {
    /// Where it is.
    pub from: RunState,
    /// Where it was to go.
    pub to: RunState,
}

/// The state after a move from `from` to `to`; staying is no move.
///
/// # Errors
/// When `to` may not follow `from`.
pub fn next(from: RunState, to: RunState) -> Result<RunState, TransitionError> {
    use RunState::{
        Aborted, Applying, Failed, Fetching, Preflight, Rebooting, Received, Refused, RollbackFailed, RolledBack,
        RollingBack, Succeeded, Validating, Verifying, WaitingLock, WaitingWindow,
    };
    let allowed: &[RunState] = match from {
        Received => &[Fetching, Refused, Aborted],
        Fetching => &[Verifying, Refused, Aborted],
        // Documents are verified before a file is fetched, files after.
        Verifying => &[Fetching, WaitingWindow, WaitingLock, Preflight, Refused, Aborted],
        WaitingWindow => &[WaitingLock, Preflight, Refused, Aborted],
        // Who is at work may have kept it from being planned at all.
        WaitingLock => &[Fetching, Preflight, Refused, Aborted],
        Preflight => &[Applying, RollingBack, Refused, Aborted],
        // Back from here only when the order says so.
        Applying => &[Rebooting, Validating, RollingBack, Failed, Aborted],
        Rebooting => &[Validating, RollingBack, Failed, Aborted],
        Validating => &[Succeeded, RollingBack, Failed, Aborted],
        RollingBack => &[RolledBack, RollbackFailed, Aborted],
        Succeeded | Failed | Refused | RolledBack | RollbackFailed | Aborted => &[],
    };
    if allowed.contains(&to) { Ok(to) } else { Err(TransitionError { from, to }) }
}

/// The same of a run that only prepares: it ends before the package manager would work, and waits for nobody.
///
/// # Errors
/// When `to` may not follow `from`.
pub fn next_in_preparation(from: RunState, to: RunState) -> Result<RunState, TransitionError> {
    use RunState::{Failed, Preflight, Succeeded, Verifying, WaitingLock, WaitingWindow};
    match (from, to) {
        (Verifying | Preflight, Succeeded) | (Preflight, Failed) => Ok(to),
        (_, WaitingWindow | WaitingLock) => Err(TransitionError { from, to }),
        _ if touches_packages(to) => Err(TransitionError { from, to }),
        _ => next(from, to),
    }
}

/// Whether a run in this state may still be aborted from outside: nothing on the host was changed yet.
pub fn abortable(state: RunState) -> bool {
    matches!(
        state,
        RunState::Received
            | RunState::Fetching
            | RunState::Verifying
            | RunState::WaitingWindow
            | RunState::WaitingLock
            | RunState::Preflight
    )
}

/// Whether the package manager may have been at work in this state.
pub fn touches_packages(state: RunState) -> bool {
    matches!(state, RunState::Applying | RunState::Rebooting | RunState::Validating | RunState::RollingBack)
}

/// Whether the site's own programs may have prepared the host for the work in this state.
pub fn is_prepared(state: RunState) -> bool {
    state == RunState::Preflight || touches_packages(state)
}

/// Whether a run in this state keeps others from working.
pub fn is_at_work(state: RunState) -> bool {
    !state.is_final() && state != RunState::WaitingWindow
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = RunState> {
        RunState::ALL.into_iter()
    }

    #[test]
    fn nothing_follows_a_final_state() {
        for from in all().filter(|state| state.is_final()) {
            assert!(all().all(|to| next(from, to).is_err()), "{from:?}");
        }
    }

    #[test]
    fn every_state_that_is_not_final_can_be_aborted_by_the_agents_end() {
        for from in all().filter(|state| !state.is_final()) {
            assert_eq!(next(from, RunState::Aborted), Ok(RunState::Aborted), "{from:?}");
        }
    }

    #[test]
    fn a_refusal_is_possible_exactly_as_long_as_nothing_was_changed() {
        for from in all() {
            assert_eq!(next(from, RunState::Refused).is_ok(), abortable(from), "{from:?}");
            assert!(!(abortable(from) && touches_packages(from)));
        }
    }

    #[test]
    fn only_a_run_that_went_through_preflight_reaches_the_package_manager() {
        let sources = |to| all().filter(|from| next(*from, to).is_ok()).collect::<Vec<_>>();
        assert_eq!(sources(RunState::Applying), [RunState::Preflight]);
        let ways_back = [RunState::Applying, RunState::Validating, RunState::Preflight, RunState::Rebooting];
        assert_eq!(sources(RunState::RollingBack), ways_back);
        for to in [RunState::WaitingWindow, RunState::WaitingLock, RunState::Preflight] {
            let unverified = [RunState::Received, RunState::Fetching];
            assert!(unverified.into_iter().all(|from| next(from, to).is_err()), "{to:?}");
        }
    }

    #[test]
    fn a_run_that_only_prepares_never_reaches_the_package_manager() {
        for from in all() {
            for to in all().filter(|to| next_in_preparation(from, *to).is_ok()) {
                assert!(!touches_packages(to), "{from:?} to {to:?}");
                let ends = matches!(to, RunState::Succeeded | RunState::Failed);
                assert!(ends || next(from, to).is_ok(), "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn a_run_that_waits_never_goes_back_and_only_one_that_waits_for_its_window_lets_others_work() {
        for (from, to) in [(RunState::WaitingLock, RunState::WaitingWindow), (RunState::Preflight, RunState::Verifying)]
        {
            assert!(next(from, to).is_err());
        }
        let idle: Vec<RunState> = all().filter(|state| !state.is_final() && !is_at_work(*state)).collect();
        assert_eq!(idle, [RunState::WaitingWindow]);
        assert!(all().filter(|state| touches_packages(*state)).all(is_prepared));
    }
}
