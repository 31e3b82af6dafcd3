//! Why an order could not be drafted.

use std::{io, path::PathBuf};

use patchlab_lab::{ArtifactError, apt::AptError, dnf::DnfError};

/// An order could not be drafted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DraftError {
    /// Neither a package nor a file was named.
    #[error("nothing to draft: name packages with --upgrade or files with --package")]
    NothingAsked,
    /// A named package is not on the baseline.
    #[error("package {name} is not installed on baseline {baseline}: an upgrade needs something to replace")]
    NotInstalled {
        /// The package.
        name: String,
        /// The baseline.
        baseline: String,
    },
    /// Named packages have no newer version.
    #[error(
        "no newer version of {names} for baseline {baseline} in its sources: nothing to do (--or-next takes the next package that has one)"
    )]
    UpToDate {
        /// The packages.
        names: String,
        /// The baseline.
        baseline: String,
    },
    /// No package has a newer version.
    #[error("every package of baseline {baseline} is at its newest version: nothing to draft")]
    AllUpToDate {
        /// The baseline.
        baseline: String,
    },
    /// The transaction would remove packages.
    #[error(
        "{names} would be removed: an order installs and upgrades only; name the packages so that nothing is removed"
    )]
    Removes {
        /// The packages.
        names: String,
    },
    /// apt said no, or cannot be used.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// dnf or rpm said no, or cannot be used.
    #[error(transparent)]
    Dnf(#[from] DnfError),
    /// A file is no package, or not the one that was to come.
    #[error("{path}: {problem}", path = path.display())]
    Package {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Nothing that a script's order says.
    #[error(
        "{path}: no [change.script], or more than one [[change]]: --from drafts an order whose change is made by a script; packages are \
         drafted with --baseline and --upgrade or --package",
        path = path.display()
    )]
    NoScript {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be shipped.
    #[error("{path}: {problem}", path = path.display())]
    Shipped {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A shell cannot read one of its scripts, or shellcheck finds an error in one.
    #[error("{finding}")]
    Unreadable {
        /// In their words.
        finding: String,
    },
    /// Less was fetched than was said.
    #[error("{name} {version} ({arch}) was not fetched, and the transaction needs it")]
    NotFetched {
        /// Package name.
        name: String,
        /// Version.
        version: String,
        /// Architecture.
        arch: String,
    },
    /// The artifact store said no.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The file system said no.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The order has no text.
    #[error("the order could not be written as TOML: {reason}")]
    Render {
        /// The writer's words.
        reason: String,
    },
}
