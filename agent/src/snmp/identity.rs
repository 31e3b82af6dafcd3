//! Engine id and boots: what makes an SNMP engine itself (RFC 3414, 2.2). Both are on the disk before they are used.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use async_snmp::{AuthoritativeEngine, PersistedAuthoritativeEngine};
use patchlab_protocol::{enrolment::EngineId, key::KeyError};
use serde::{Deserialize, Serialize};

use crate::{journal::replace, reserve::insist};

/// The file's name in the state folder.
const FILE_NAME: &str = "snmp-engine.json";

/// The engine's identity cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read.
    #[error("SNMP engine file {path}: {source}; remove it only together with the host's enrolment")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No entropy for a new engine id.
    #[error(transparent)]
    Entropy(#[from] KeyError),
    /// The boots could not be counted.
    #[error("SNMP engine boots: {0}")]
    Boots(Box<async_snmp::Error>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    engine_id: EngineId,
    boots: u32,
}

/// The engine of this start: the enrolled engine id, or the kept one, or a new one, with boots one higher than ever before. A host
/// that is enrolled with another engine id begins to count again.
///
/// # Errors
/// When the file cannot be read or written: an engine that forgets its boots could be replayed to.
pub fn engine(folder: &Path, enrolled: Option<&EngineId>) -> Result<AuthoritativeEngine, IdentityError> {
    let path = folder.join(FILE_NAME);
    let kept = read(&path)?;
    let persist = move |state: &PersistedAuthoritativeEngine| {
        let engine_id = EngineId::from_bytes(state.engine_id()).map_err(io::Error::other)?;
        let text = serde_json::to_vec(&Kept { engine_id, boots: state.engine_boots() })?;
        insist(&path, || replace(&path, &text))
    };
    let engine = match kept {
        Some(kept) if enrolled.is_none_or(|id| *id == kept.engine_id) => {
            PersistedAuthoritativeEngine::new(kept.engine_id.as_bytes().to_vec(), kept.boots)
                .and_then(|previous| AuthoritativeEngine::restart(previous, persist))
        }
        _ => {
            let id = enrolled.cloned().map_or_else(EngineId::generate, Ok)?;
            AuthoritativeEngine::install(id.as_bytes().to_vec(), persist)
        }
    };
    engine.map_err(IdentityError::Boots)
}

fn read(path: &Path) -> Result<Option<Kept>, IdentityError> {
    let failed = |source| IdentityError::File { path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_grow_with_every_start_and_the_engine_id_stays() {
        let folder = tempfile::tempdir().unwrap();
        let first = engine(folder.path(), None).unwrap();
        let second = engine(folder.path(), None).unwrap();
        assert_eq!(first.engine_id(), second.engine_id());
        assert_eq!((first.engine_boots(), second.engine_boots()), (1, 2));
        let other = EngineId::from_bytes(b"another engine").unwrap();
        assert_eq!(engine(folder.path(), Some(&other)).unwrap().engine_boots(), 1);
        assert_eq!(engine(folder.path(), Some(&other)).unwrap().engine_boots(), 2);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_a_new_engine() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE_NAME), "{").unwrap();
        assert!(matches!(engine(folder.path(), None), Err(IdentityError::File { .. })));
    }
}
