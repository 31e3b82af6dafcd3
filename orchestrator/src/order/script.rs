//! A change by scripts, from its written form to the one that is signed.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use patchlab_protocol::{
    document::{FileName, Script as Signed, ShippedFile as SignedFile, script},
    limits,
};

use super::{Change, OrderError, Script, Shipped, compile::wrong};

/// The script that is signed. Pure.
///
/// # Errors
/// The key and what is wrong with it.
pub(super) fn compile(change: &Change, written: &Script) -> Result<Signed, OrderError> {
    let packages = !change.upgrade.is_empty() || !change.packages.is_empty();
    if packages || !change.file.is_empty() || !change.replaces.is_empty() {
        return wrong("change.0.script", "a change is made by packages or by a script, never by both: make two orders");
    }
    if written.files.len() > limits::SCRIPT_FILES {
        return wrong(
            "change.0.script.files",
            format!("more than {} files: ship them as one archive", limits::SCRIPT_FILES),
        );
    }
    let mut files = Vec::new();
    for (key, shipped) in written.shipped() {
        let key = format!("change.0.script.{key}");
        let Shipped::Drafted(file) = shipped else {
            return wrong(
                key,
                format!("{} has no digest yet: let `patchlab order draft --from` draft the order", shipped.path()),
            );
        };
        let name = match name(shipped) {
            Ok(name) => name,
            Err(problem) => return wrong(key, problem),
        };
        files.push(SignedFile { name, size: file.size, sha256: file.sha256 });
    }
    let mut beside = files.split_off(3);
    beside.sort_by(|a, b| a.name.cmp(&b.name));
    let Ok([apply, rollback, verify]) = <[SignedFile; 3]>::try_from(files) else {
        return wrong("change.0.script", "apply, rollback and verify are needed");
    };
    let signed = Signed { apply, rollback, verify, files: beside };
    signed.check().map_or_else(|error| wrong("change.0.script", error.to_string()), |()| Ok(signed))
}

/// The name under which a file is shipped: its own.
pub(crate) fn name(shipped: &Shipped) -> Result<FileName, String> {
    let name = Path::new(shipped.path()).file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| format!("{:?} names no file", shipped.path()))?
        .parse()
        .map_err(|error: script::BadFileName| error.to_string())
}

/// Whether a file can be run by its first line.
pub(crate) fn begins_with_interpreter(path: &Path) -> io::Result<bool> {
    let mut first = Vec::new();
    fs::File::open(path)?.take(script::INTERPRETER_BYTES).read_to_end(&mut first)?;
    Ok(script::begins_with_interpreter(&first))
}
