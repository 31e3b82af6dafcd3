use patchlab_check::target::Ended;

use super::*;

/// A goal whose scripts are these texts, below `folder`.
fn goal(folder: &Path, action: Action, [apply, rollback, verify]: [&str; 3]) -> Goal {
    let mut files = Vec::new();
    let mut ship = |name: &str, text: &str| {
        let (path, sha256) = (folder.join(format!("{name}.fetched")), Digest::of(text));
        fs::write(&path, text).unwrap();
        files.push(path);
        ShippedFile { name: name.parse().unwrap(), size: text.len() as u64, sha256 }
    };
    let shell = |text: &str| format!("#!/bin/sh\n{text}\n");
    let [apply, rollback, verify] =
        [("apply", apply), ("rollback", rollback), ("verify", verify)].map(|(name, text)| ship(name, &shell(text)));
    let script = Script { apply, rollback, verify, files: vec![ship("snippet", "a line\n")] };
    let (order, id, room) = (Digest::of("order"), "PO-1".to_owned(), folder.join("room"));
    Goal { order, id, action, script, files, room }
}

fn neither() -> Found {
    Found::Neither("exit 3".into())
}

const CLEAR: [Found; 2] = [Found::Clear(Standing::Applied), Found::Clear(Standing::NotApplied)];

#[test]
fn apply_begins_without_it_and_rollback_with_it_or_half_way_by_its_own_doing() {
    let folder = tempfile::tempdir().unwrap();
    let [applied, not_applied] = CLEAR;
    let (apply, back) = ("install PO-1 script - -> applied", "remove PO-1 script applied -> -");
    for (action, found, expected) in [
        (Action::Apply, &not_applied, Some(apply)),
        (Action::Apply, &applied, None),
        (Action::Apply, &neither(), None),
        (Action::Rollback, &applied, Some(back)),
        (Action::Rollback, &not_applied, None),
        (Action::Rollback, &neither(), Some(back)),
    ] {
        let may = may(&goal(folder.path(), action, [":"; 3]), found);
        let line = may.as_ref().ok().map(|change| change.line(patchlab_protocol::PackageSystem::Dpkg));
        assert_eq!(line.as_deref(), expected, "{action:?}, {found}");
        assert!(may.is_ok() || may.is_err_and(|refused| refused.refusal == Refusal::VersionsDiffer));
    }
}

#[test]
fn what_is_half_way_is_run_again_when_it_was_cut_off_and_then_walked_back() {
    for action in [Action::Apply, Action::Rollback] {
        for past in [Past::Interrupted, Past::Ended, Past::RanAgain, Past::WalkedBack] {
            assert!(CLEAR.iter().all(|found| next(action, found, past) == Next::Stop), "{action:?} {past:?}");
        }
        assert_eq!(next(action, &neither(), Past::Interrupted), Next::Again);
        assert_eq!(next(action, &neither(), Past::WalkedBack), Next::Stop);
    }
    for past in [Past::Ended, Past::RanAgain] {
        assert_eq!(next(Action::Apply, &neither(), past), Next::WalkBack);
        assert_eq!(next(Action::Rollback, &neither(), past), Next::Stop);
    }
}

#[test]
fn a_script_is_run_only_where_it_may_and_back_only_where_it_was_begun() {
    let folder = tempfile::tempdir().unwrap();
    let script = goal(folder.path(), Action::Apply, [":"; 3]).script;
    let order = Order { script: Some(script.clone()), ..crate::change::packages::tests::order() };
    let ask = |action, rule, begun| plan(&order, &script, action, Here { rule, begun });
    assert!(ask(Action::Apply, Rule::Allow, Begun::Never).is_ok());
    assert!(ask(Action::Rollback, Rule::Allow, Begun::Here).is_ok());
    for action in [Action::Apply, Action::Rollback] {
        let refused = ask(action, Rule::Refuse, Begun::Here).unwrap_err();
        assert!(refused.reason.contains("allow = true under [scripts]"), "{refused}");
    }
    let refused = ask(Action::Rollback, Rule::Allow, Begun::Never).unwrap_err();
    assert!(refused.reason.contains("never begun on this host"), "{refused}");
}

#[test]
fn a_script_runs_beside_its_files_knows_its_order_and_finds_nothing_of_an_earlier_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let apply = format!(
        "ls > {out}; cat snippet >> {out}; echo $PATCHLAB_ACTION $PATCHLAB_ORDER >> {out}; [ -z \"$CARGO\" ] || exit 9; \
         : > mine; echo rubbish > snippet; : > \"$TMPDIR/t\"",
        out = out.display()
    );
    let goal = goal(folder.path(), Action::Apply, [&apply, ":", ":"]);
    for _ in 0..2 {
        let committed = goal.commit(Instant::now() + Duration::from_secs(20), &mut |_| {}).unwrap();
        assert_eq!(committed.finished.exit, Some(0), "{committed:?}");
        let expected = format!("apply\nrollback\nsnippet\nverify\na line\napply {}\n", Digest::of("order"));
        assert_eq!(fs::read_to_string(&out).unwrap(), expected);
    }
}

#[test]
fn a_file_that_was_altered_since_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let goal = goal(folder.path(), Action::Apply, [&format!(": > {}", out.display()), ":", ":"]);
    fs::write(&goal.files[3], "another line\n").unwrap();
    let error = goal.commit(Instant::now() + Duration::from_secs(20), &mut |_| {}).unwrap_err();
    assert!(matches!(&error, ScriptError::Altered { path } if *path == goal.files[3]), "{error}");
    assert!(!out.exists());
}

#[test]
fn verify_says_one_of_two_things_or_neither_with_its_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let look = |verify: &str| goal(folder.path(), Action::Apply, [":", ":", verify]).look(&mut |_| {}).unwrap();
    assert_eq!([look("exit 0"), look("exit 10")], CLEAR);
    assert_eq!(look("echo 'half of it is there' >&2; exit 3"), Found::Neither("exit 3: half of it is there".into()));
    assert!(matches!(look("kill -9 $$"), Found::Neither(why) if why.contains("killed")));
}

#[test]
fn what_cannot_be_run_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let mut goal = goal(folder.path(), Action::Apply, [":"; 3]);
    let text = "#!/nowhere/sh\n";
    fs::write(&goal.files[0], text).unwrap();
    (goal.script.apply.sha256, goal.script.apply.size) = (Digest::of(text), text.len() as u64);
    let error = goal.commit(Instant::now() + Duration::from_secs(20), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("cannot run the order's script apply") && error.contains("#! line"), "{error}");
}

#[test]
fn a_change_that_is_half_way_is_ended_by_the_same_script_and_else_by_the_way_back() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let (state, verify) =
        (state.display(), format!("case $(cat {}) in on) exit 0;; off) exit 10;; esac; exit 3", state.display()));
    let settle = |action, apply: &str, past| {
        fs::write(folder.path().join("state"), "half").unwrap();
        let rollback = format!("echo off > {state}");
        goal(folder.path(), action, [apply, &rollback, &verify]).settle(past, Duration::from_secs(20), &mut |_| {})
    };
    let (on, fails) = (format!("echo on > {state}"), "exit 1");
    assert_eq!(settle(Action::Apply, &on, Past::Interrupted), CLEAR[0]);
    assert_eq!(settle(Action::Apply, fails, Past::Interrupted), CLEAR[1]);
    assert_eq!(settle(Action::Apply, &on, Past::Ended), CLEAR[1], "what failed by itself is not run again");
    assert_eq!(settle(Action::Rollback, &on, Past::Interrupted), CLEAR[1]);
    assert!(matches!(settle(Action::Rollback, &on, Past::Ended), Found::Neither(_)), "nothing more is to be done");
}

#[test]
fn a_flood_is_bounded_and_its_end_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let apply = "yes | head -c 30000000 >&2; echo 'E: it broke' >&2; exit 1";
    let goal = goal(folder.path(), Action::Apply, [apply, ":", ":"]);
    let committed = goal.commit(Instant::now() + Duration::from_secs(60), &mut |_| {}).unwrap();
    let Finished { exit, stderr, written, ended, .. } = &committed.finished;
    assert_eq!((*exit, *ended, *written), (Some(1), Ended::ByItself, 30_000_012));
    assert!(stderr.len() < 2 * OUTPUT_BYTES as usize, "{}", stderr.len());
    assert_eq!(committed.finished.last_words(), "E: it broke");
}
