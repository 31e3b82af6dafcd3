//! What CI systems show beside the code: annotations on the lines of scenario files, where a job runs under one that knows them.
//!
//! Pure, but for the environment's variables, which are handed in: [`Runner::of`] knows who runs this, [`lines`] what it is told.

use std::path::{Path, PathBuf};

use patchlab_lab::{
    failure::{Blame, Failure, failures},
    report::Report,
    runs::Tested,
    verdict::Judgement,
};

/// Who runs this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Runner {
    /// GitHub Actions, with the folder of the code.
    GitHub {
        /// `GITHUB_WORKSPACE`.
        workspace: PathBuf,
    },
    /// GitLab CI.
    GitLab,
    /// A person, or a system that reads JUnit.
    Other,
}

impl Runner {
    /// By the variables that each sets; empty is unset.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        if set("GITHUB_ACTIONS").is_some() {
            Self::GitHub { workspace: set("GITHUB_WORKSPACE").map(PathBuf::from).unwrap_or_default() }
        } else if set("GITLAB_CI").is_some() {
            Self::GitLab
        } else {
            Self::Other
        }
    }
}

/// What the runner is told of a verdict. `junit` is the file that was written.
pub(super) fn lines(runner: &Runner, report: &Report, tested: &[Tested], junit: Option<&Path>) -> Vec<String> {
    match runner {
        Runner::GitHub { workspace } => github(workspace, report, tested),
        Runner::GitLab => vec![match junit {
            Some(path) => format!(
                "GitLab shows these results when the job has `artifacts: reports: junit: {}`, with `when: always`",
                path.display()
            ),
            None => {
                "GitLab shows these results with --junit FILE, and `artifacts: reports: junit: FILE` in the job".into()
            }
        }],
        Runner::Other => Vec::new(),
    }
}

/// Workflow commands: an error for what the patch broke, a warning for what is its owner's or in quarantine, at the step's line; and an error without a
/// place for a verdict that no step explains.
fn github(workspace: &Path, report: &Report, tested: &[Tested]) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for baseline in &report.baselines {
        let found = failures(baseline, tested);
        let is_explained = found.iter().any(|failure| failure.blame == Blame::Patch);
        said.extend(found.iter().map(|failure| command(workspace, failure)));
        let title = property(&format!("{} on {}", report.id, baseline.name));
        said.extend(baseline.aside().iter().map(|aside| format!("::notice title={title}::{}", data(aside))));
        if baseline.verdict != Judgement::Passed && !is_explained {
            let title = property(&format!("{}: {}", report.id, baseline.verdict));
            said.push(format!("::error title={title}::{}", data(&format!("{}: {}", baseline.name, baseline.reason))));
        }
    }
    // The same on every baseline and in every phase is one annotation each time: GitHub shows ten of a kind, so none twice.
    let mut seen = std::collections::BTreeSet::new();
    said.retain(|line| seen.insert(line.clone()));
    said
}

fn command(workspace: &Path, failure: &Failure<'_>) -> String {
    let kind = match failure.blame {
        Blame::Owner | Blame::Quarantine => "warning",
        Blame::Patch | Blame::Lab => "error",
    };
    let place = failure.tested.map(|tested| {
        let (file, line) = tested.place(failure.step);
        let file = file.strip_prefix(workspace).unwrap_or(file);
        format!("file={},line={line},", property(&file.display().to_string()))
    });
    let aside = if failure.blame == Blame::Quarantine { "in quarantine: " } else { "" };
    let title = property(&format!("{aside}{} of {}/{}", failure.verdict, failure.scenario, failure.step));
    let message = data(&format!("{}: {failure}", failure.baseline));
    format!("::{kind} {}title={title}::{message}", place.unwrap_or_default())
}

/// A command's data, as the runner's toolkit escapes it.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A command's property: likewise, and what ends one.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use patchlab_check::{Digest, Outcome, Status};
    use patchlab_lab::{
        report::{BaselineReport, QuarantinedScenario, SCHEMA, ScenarioReport, StepReport},
        runs::TestedStep,
        scenario::Standing,
        verdict::{Phase, Verdict},
    };

    use super::*;

    fn report(verdict: Verdict, control: Status) -> Report {
        let outcome = |status, reason: &str| {
            Some(Outcome {
                status,
                exit: Some(1),
                ms: 1,
                output: String::new(),
                reason: reason.into(),
                samples: Vec::new(),
            })
        };
        let step = StepReport {
            name: "config".into(),
            verdict: Some(verdict),
            control: outcome(control, ""),
            patched: outcome(Status::Fail, "50% of it:\nbad"),
            metric: None,
            failed: None,
        };
        let ran = |phase| ScenarioReport {
            name: "web-smoke".into(),
            phase,
            verdict,
            reason: String::new(),
            steps: vec![step.clone()],
        };
        let baseline = BaselineReport {
            verdict: Judgement::Rejected,
            reason: "because, of: it".into(),
            scenarios: vec![ran(Phase::Applied), ran(Phase::Applied)],
            ..BaselineReport::begun("web@1".into(), Digest::of("web"))
        };
        Report {
            schema: SCHEMA,
            order: Digest::of("order"),
            id: "PO-1".into(),
            verdict: Judgement::Rejected,
            reason: String::new(),
            baselines: vec![baseline],
            total_ms: 1,
            bisection: None,
        }
    }

    fn tested() -> Vec<Tested> {
        vec![Tested {
            name: "web-smoke".into(),
            owner: "qa".into(),
            summary: String::new(),
            digest: Digest::of(""),
            file: "/code/scenarios/web,smoke/scenario.toml".into(),
            steps: vec![TestedStep { name: "config".into(), does: "nginx -t".into(), line: 12, file: None }],
        }]
    }

    #[test]
    fn github_is_told_the_line_of_the_scenarios_file_once() {
        let github = Runner::GitHub { workspace: "/code".into() };
        let said = lines(&github, &report(Verdict::Regression, Status::Pass), &tested(), None);
        let place = "file=scenarios/web%2Csmoke/scenario.toml,line=12,title=regression of web-smoke/config";
        let sentence = "web@1: regression after the patch: web-smoke/config, `nginx -t`: fails (exit 1), 50%25 of it:; \
                        the control passes (exit 1)";
        assert_eq!(said, [format!("::error {place}::{sentence}")]);
    }

    #[test]
    fn what_is_its_owners_is_a_warning_and_a_verdict_without_a_step_an_error_without_a_place() {
        let github = Runner::GitHub { workspace: PathBuf::new() };
        let said = lines(&github, &report(Verdict::PreExisting, Status::Fail), &tested(), None);
        assert!(said[0].starts_with("::warning file=/code/scenarios/"), "{said:?}");
        assert_eq!(said[1], "::error title=PO-1%3A rejected::web@1: because, of: it");
    }

    #[test]
    fn what_is_in_quarantine_is_a_warning_and_said() {
        let mut report = report(Verdict::Regression, Status::Pass);
        report.baselines[0].quarantined = vec![QuarantinedScenario {
            name: "web-smoke".into(),
            standing: Standing::Holds,
            owner: "qa".into(),
            until: "2027-01-31".into(),
            ticket: "QA-7".into(),
        }];
        report.baselines[0].verdict = Judgement::Passed;
        let said = lines(&Runner::GitHub { workspace: PathBuf::new() }, &report, &tested(), None);
        assert!(
            said[0].starts_with("::warning file=") && said[0].contains("title=in quarantine%3A regression"),
            "{said:?}"
        );
        assert!(said[1].starts_with("::notice title=PO-1 on web@1::web-smoke is in quarantine until"), "{said:?}");
        assert_eq!(said.len(), 2);
    }

    #[test]
    fn runners_are_known_by_their_variables() {
        let runner = |set: &[(&str, &str)]| {
            Runner::of(|name| set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned()))
        };
        let workspace = ("GITHUB_WORKSPACE", "/code");
        assert_eq!(runner(&[("GITHUB_ACTIONS", "true"), workspace]), Runner::GitHub { workspace: "/code".into() });
        assert_eq!(runner(&[("GITLAB_CI", "true")]), Runner::GitLab);
        assert_eq!(runner(&[("GITHUB_ACTIONS", ""), workspace]), Runner::Other);
        let report = report(Verdict::Regression, Status::Pass);
        assert_eq!(lines(&Runner::Other, &report, &[], None), Vec::<String>::new());
        let hint = &lines(&Runner::GitLab, &report, &[], Some(Path::new("out/junit.xml")))[0];
        assert!(hint.contains("junit: out/junit.xml"), "{hint}");
    }
}
