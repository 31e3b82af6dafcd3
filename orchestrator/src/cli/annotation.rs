//! What CI systems show beside the code: annotations on the lines of scenario files, where a job runs under one that knows them.
//!
//! Pure, but for the environment's variables, which are handed in: [`Runner::of`] knows who runs this, [`lines`] what it is told, and
//! [`code_quality`] writes the report that GitLab reads.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use patchlab_check::Digest;
use patchlab_lab::{
    failure::{Blame, Failure, failures},
    report::Report,
    runs::Tested,
    verdict::Judgement,
};
use serde_json::{Value, json};

/// Who runs this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Runner {
    /// GitHub Actions, with the folder of the code.
    GitHub {
        /// `GITHUB_WORKSPACE`.
        workspace: PathBuf,
    },
    /// GitLab CI, with the folder of the code.
    GitLab {
        /// `CI_PROJECT_DIR`.
        project: PathBuf,
    },
    /// A person, or a system that reads JUnit.
    Other,
}

impl Runner {
    /// By the variables that each sets; empty is unset.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let folder = |name: &str| set(name).map(PathBuf::from).unwrap_or_default();
        if set("GITHUB_ACTIONS").is_some() {
            Self::GitHub { workspace: folder("GITHUB_WORKSPACE") }
        } else if set("GITLAB_CI").is_some() {
            Self::GitLab { project: folder("CI_PROJECT_DIR") }
        } else {
            Self::Other
        }
    }

    /// The folder of the code, below which files are named; empty where nobody says.
    pub(super) fn code(&self) -> &Path {
        match self {
            Self::GitHub { workspace: folder } | Self::GitLab { project: folder } => folder,
            Self::Other => Path::new(""),
        }
    }
}

/// The files that were written for a runner.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Written<'a> {
    /// `--junit`
    pub junit: Option<&'a Path>,
    /// `--code-quality`
    pub code_quality: Option<&'a Path>,
}

/// What the runner is told of a verdict.
pub(super) fn lines(runner: &Runner, report: &Report, tested: &[Tested], written: Written<'_>) -> Vec<String> {
    match runner {
        Runner::GitHub { workspace } => {
            annotations(report, tested).iter().map(|found| command(workspace, found)).collect()
        }
        Runner::GitLab { .. } => {
            let hint = |key: &str, option: &str, path: Option<&Path>| match path {
                Some(path) => format!("`{key}: {}`", path.display()),
                None => format!("`{key}: FILE` for {option} FILE"),
            };
            let junit = hint("junit", "--junit", written.junit);
            let quality = hint("codequality", "--code-quality", written.code_quality);
            vec![format!(
                "GitLab shows these results when the job has, below `artifacts: reports:`, {junit} and {quality}, and `when: always`"
            )]
        }
        Runner::Other => Vec::new(),
    }
}

/// The report of GitLab's `artifacts: reports: codequality`, as its documentation describes it: what merge requests show at the lines of
/// scenario files. Files are named below `code`; what has no step is at the order's name.
pub(super) fn code_quality<'a>(code: &Path, verdicts: impl IntoIterator<Item = (&'a Report, &'a [Tested])>) -> Value {
    let entries = verdicts.into_iter().flat_map(|(report, tested)| {
        annotations(report, tested).into_iter().map(|found| entry(code, &report.id, &found))
    });
    Value::Array(entries.collect())
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    /// The patch broke it, or the lab is broken.
    Error,
    /// Its owner's, or in quarantine.
    Warning,
    /// Skipped, or in quarantine and sound.
    Notice,
}

/// A remark, and the line that it is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Annotation {
    severity: Severity,
    place: Option<(PathBuf, u64)>,
    title: String,
    message: String,
}

/// An error for what the patch broke, a warning for what is its owner's or in quarantine, at the step's line; an error without a place for a verdict
/// that no step explains; a notice for what was skipped. The same on every baseline and in every phase is one each time, and none twice.
fn annotations(report: &Report, tested: &[Tested]) -> Vec<Annotation> {
    let mut found = Vec::new();
    for baseline in &report.baselines {
        let failures = failures(baseline, tested);
        found.extend(failures.iter().map(of_failure));
        found.extend(baseline.aside().into_iter().map(|message| Annotation {
            severity: Severity::Notice,
            place: None,
            title: format!("{} on {}", report.id, baseline.name),
            message,
        }));
        let is_explained = failures.iter().any(|failure| failure.blame == Blame::Patch);
        if baseline.verdict != Judgement::Passed && !is_explained {
            found.push(Annotation {
                severity: Severity::Error,
                place: None,
                title: format!("{}: {}", report.id, baseline.verdict),
                message: format!("{}: {}", baseline.name, baseline.reason),
            });
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|annotation| seen.insert(annotation.clone()));
    found
}

fn of_failure(failure: &Failure<'_>) -> Annotation {
    let aside = if failure.blame == Blame::Quarantine { "in quarantine: " } else { "" };
    Annotation {
        severity: match failure.blame {
            Blame::Owner | Blame::Quarantine => Severity::Warning,
            Blame::Patch | Blame::Lab => Severity::Error,
        },
        place: failure
            .tested
            .map(|tested| tested.place(failure.step))
            .map(|(file, line)| (file.to_owned(), line as u64)),
        title: format!("{aside}{} of {}/{}", failure.verdict, failure.scenario, failure.step),
        message: format!("{}: {failure}", failure.baseline),
    }
}

/// A workflow command of GitHub's.
fn command(workspace: &Path, found: &Annotation) -> String {
    let kind = match found.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Notice => "notice",
    };
    let place = found.place.as_ref().map(|(file, line)| {
        let file = file.strip_prefix(workspace).unwrap_or(file);
        format!("file={},line={line},", property(&file.display().to_string()))
    });
    format!("::{kind} {}title={}::{}", place.unwrap_or_default(), property(&found.title), data(&found.message))
}

/// An entry of a code quality report.
fn entry(code: &Path, order: &str, found: &Annotation) -> Value {
    let severity = match found.severity {
        Severity::Error => "major",
        Severity::Warning => "minor",
        Severity::Notice => "info",
    };
    let (path, line) = match &found.place {
        Some((file, line)) => (file.strip_prefix(code).unwrap_or(file).display().to_string(), *line),
        None => (order.to_owned(), 1),
    };
    // What is known by it is the same remark in another run, whatever the machines said there.
    let baseline = found.message.split_once(": ").map_or("", |(baseline, _)| baseline);
    let fingerprint = Digest::of([order, &path, &found.title, baseline].join("\n")).to_string();
    json!({
        "check_name": format!("patchlab: {}", found.title),
        "description": found.message,
        "fingerprint": fingerprint,
        "severity": severity,
        "location": { "path": path, "lines": { "begin": line } },
    })
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
        let said = lines(&github, &report(Verdict::Regression, Status::Pass), &tested(), Written::default());
        let place = "file=scenarios/web%2Csmoke/scenario.toml,line=12,title=regression of web-smoke/config";
        let sentence = "web@1: regression after the patch: web-smoke/config, `nginx -t`: fails (exit 1), 50%25 of it:; \
                        the control passes (exit 1)";
        assert_eq!(said, [format!("::error {place}::{sentence}")]);
    }

    #[test]
    fn what_is_its_owners_is_a_warning_and_a_verdict_without_a_step_an_error_without_a_place() {
        let github = Runner::GitHub { workspace: PathBuf::new() };
        let said = lines(&github, &report(Verdict::PreExisting, Status::Fail), &tested(), Written::default());
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
        let said = lines(&Runner::GitHub { workspace: PathBuf::new() }, &report, &tested(), Written::default());
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
        let gitlab = runner(&[("GITLAB_CI", "true"), ("CI_PROJECT_DIR", "/builds/code")]);
        assert_eq!(gitlab, Runner::GitLab { project: "/builds/code".into() });
        assert_eq!(runner(&[("GITHUB_ACTIONS", ""), workspace]), Runner::Other);
        let report = report(Verdict::Regression, Status::Pass);
        assert_eq!(lines(&Runner::Other, &report, &[], Written::default()), Vec::<String>::new());
        let written = Written { junit: Some(Path::new("out/junit.xml")), code_quality: None };
        let hint = &lines(&gitlab, &report, &[], written)[0];
        assert!(hint.contains("`junit: out/junit.xml` and `codequality: FILE` for --code-quality FILE"), "{hint}");
    }

    #[test]
    fn gitlab_is_told_the_line_below_its_project_and_knows_the_remark_again() {
        let entries = |report: &Report| code_quality(Path::new("/code"), [(report, &tested()[..])]);
        let first = report(Verdict::Regression, Status::Pass);
        let said = entries(&first);
        let [entry] = &said.as_array().unwrap()[..] else { panic!("{said:#}") };
        assert_eq!(entry["location"], json!({ "path": "scenarios/web,smoke/scenario.toml", "lines": { "begin": 12 } }));
        assert_eq!(
            (&entry["severity"], &entry["check_name"]),
            (&json!("major"), &json!("patchlab: regression of web-smoke/config"))
        );
        assert!(entry["description"].as_str().unwrap().contains("the control passes (exit 1)"), "{entry:#}");
        let mut again = first.clone();
        for ran in &mut again.baselines[0].scenarios {
            ran.steps[0].patched.as_mut().unwrap().exit = Some(7);
        }
        let again = &entries(&again)[0];
        assert_ne!(again["description"], entry["description"]);
        assert_eq!(again["fingerprint"], entry["fingerprint"]);
        let other = Report { id: "PO-2".into(), ..first.clone() };
        assert_ne!(code_quality(Path::new(""), [(&other, &tested()[..])])[0]["fingerprint"], entry["fingerprint"]);
        // What no step explains is at the order's name: GitLab drops what is nowhere.
        let unexplained = code_quality(Path::new(""), [(&report(Verdict::PreExisting, Status::Fail), &[][..])]);
        let entries = unexplained.as_array().unwrap();
        assert_eq!(entries.last().unwrap()["location"], json!({ "path": "PO-1", "lines": { "begin": 1 } }));
    }
}
