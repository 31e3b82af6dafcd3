//! Drafting an order whose change is made by scripts: every file goes into the artifact store, and the order names it by its digest.
//! Needs no baseline, since nothing has to be resolved.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use patchlab_lab::{
    ArtifactStore,
    scenario::{Weight, lint_scripts},
};
use patchlab_protocol::limits;

use super::{DraftError, Progress, files::relative};
use crate::order::{self, Script, Shipped, ShippedFile, Written, begins_with_interpreter};

/// Drafts the order in the file `from`, whose paths are relative to it; those of the result are relative to `out`. An order that was drafted
/// before is drafted again, from the files as they are now.
///
/// # Errors
/// It ships no script, a file is missing, is no script, has a name that cannot be shipped, or is too large, or a shell cannot read it.
pub fn draft_script(
    written: &Written,
    from: &Path,
    artifacts: &ArtifactStore,
    out: &Path,
    observer: &mut dyn FnMut(Progress),
) -> Result<Written, DraftError> {
    let folder = from.parent().unwrap_or(Path::new("."));
    let mut drafted = written.clone();
    let [change] = drafted.change.as_mut_slice() else { return Err(DraftError::NoScript { path: from.to_owned() }) };
    let Some(script) = &mut change.script else { return Err(DraftError::NoScript { path: from.to_owned() }) };
    let mut bytes = 0;
    let programs: Vec<PathBuf> =
        [&script.apply, &script.rollback, &script.verify].map(|file| folder.join(file.path())).into();
    for shipped in every(script) {
        let path = folder.join(shipped.path());
        let wrong = |problem: String| DraftError::Shipped { path: path.clone(), problem };
        order::script_name(shipped).map_err(wrong)?;
        let io = |source: io::Error| DraftError::Io { action: "read", path: path.clone(), source };
        let found = fs::metadata(&path).map_err(io)?;
        if !found.is_file() || found.len() == 0 {
            return Err(wrong("not a file with anything in it".into()));
        }
        bytes += found.len();
        if bytes > limits::SCRIPT_BYTES {
            let problem = format!("with it, the files have {bytes} bytes, more than {}", limits::SCRIPT_BYTES);
            return Err(wrong(problem));
        }
        if programs.contains(&path) && !begins_with_interpreter(&path).map_err(io)? {
            return Err(wrong("it does not begin with #! and an interpreter: no host could run it".into()));
        }
        let (sha256, size) = artifacts.put(&path)?;
        *shipped = Shipped::Drafted(ShippedFile { path: relative(&path, out), size, sha256 });
    }
    for finding in lint_scripts(&programs) {
        match finding.weight {
            Weight::Error => return Err(DraftError::Unreadable { finding: finding.text }),
            Weight::Advice => observer(Progress::Note(finding.text)),
        }
    }
    Ok(drafted)
}

fn every(script: &mut Script) -> impl Iterator<Item = &mut Shipped> {
    [&mut script.apply, &mut script.rollback, &mut script.verify].into_iter().chain(&mut script.files)
}
