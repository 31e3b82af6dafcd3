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
        Aborted, Applying, Failed, Fetching, Received, Refused, RollbackFailed, RolledBack, RollingBack, Succeeded,
        Validating, Verifying,
    };
    let allowed: &[RunState] = match from {
        Received => &[Fetching, Refused, Aborted],
        Fetching => &[Verifying, Refused, Aborted],
        // Documents are verified before a file is fetched, files and the simulation after.
        Verifying => &[Fetching, Applying, RollingBack, Refused, Aborted],
        Applying => &[Validating, Failed, Aborted],
        Validating => &[Succeeded, Failed, Aborted],
        RollingBack => &[RolledBack, RollbackFailed, Aborted],
        Succeeded | Failed | Refused | RolledBack | RollbackFailed | Aborted => &[],
    };
    if allowed.contains(&to) { Ok(to) } else { Err(TransitionError { from, to }) }
}

/// Whether a run in this state may still be aborted from outside: nothing on the host was changed yet.
pub fn abortable(state: RunState) -> bool {
    matches!(state, RunState::Received | RunState::Fetching | RunState::Verifying)
}

/// Whether the package manager may have been at work in this state.
pub fn touches_packages(state: RunState) -> bool {
    matches!(state, RunState::Applying | RunState::Validating | RunState::RollingBack)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = RunState> {
        (1..=12).filter_map(RunState::from_number)
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
    fn only_a_verified_run_reaches_the_package_manager() {
        for to in [RunState::Applying, RunState::RollingBack] {
            let sources: Vec<RunState> = all().filter(|from| next(*from, to).is_ok()).collect();
            assert_eq!(sources, [RunState::Verifying]);
        }
    }
}
