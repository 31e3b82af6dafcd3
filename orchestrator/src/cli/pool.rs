//! `patchlab lab hosts`: which hosts lend machines, and what each has.

use clap::Args;
use patchlab_lab::{host::Libvirt, room::Bytes};
use serde_json::json;

use super::{CliError, Exit, Global, progress::Progress};
use crate::lab::pool::Pool;

pub(super) const EXAMPLES: &str = "Examples:
  patchlab lab hosts
  patchlab lab hosts --libvirt qemu:///system --json -

DATA/patchlab.toml says which there are; without it, this machine alone lends to itself:

  [[lab.host]]
  name = \"fast-disk\"
  libvirt = \"qemu:///embed?root=/mnt/fast\"
  validations = 2
  memory = \"8GiB\"

Exit codes: 0 one lends machines, 4 none does.";

/// The hosts that lend machines.
#[derive(Debug, Args)]
pub struct HostsCommand {
    /// Look at these instead, by the URIs of their libvirt
    #[arg(long, value_name = "URI")]
    libvirt: Vec<Libvirt>,
}

impl HostsCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let output = global.output();
        let pool = Pool::of(&data, &self.libvirt).map_err(CliError::input)?;
        let mut progress = Progress::new(output.voice());
        progress.now("looking at the hosts");
        let lenders = pool.look(&data);
        drop(progress);
        let limit = |limit: Option<String>| limit.unwrap_or_else(|| "what is free".into());
        let rows: Vec<_> = lenders
            .iter()
            .map(|lender| {
                let host = lender.host;
                let (state, what) = match &lender.found {
                    Ok(found) => ("yes", format!("{}; {} of disk free", found.libvirt, Bytes(found.disk_free))),
                    Err(reason) => ("no", reason.clone()),
                };
                let fields = vec![
                    host.name.clone(),
                    state.to_owned(),
                    host.libvirt.to_string(),
                    host.validations.map_or_else(|| "as processors".into(), |count| count.to_string()),
                    limit(host.memory_mib.map(|mib| Bytes(mib << 20).to_string())),
                ];
                (fields, what)
            })
            .collect();
        output.annotated(&["host", "lends", "libvirt", "at once", "memory"], &rows);
        let all: Vec<_> = lenders
            .iter()
            .map(|lender| {
                let host = lender.host;
                json!({
                    "name": host.name, "libvirt": host.libvirt.to_string(), "validations": host.validations,
                    "memory_mib": host.memory_mib, "found": lender.found.as_ref().ok(),
                    "out": lender.found.as_ref().err(),
                })
            })
            .collect();
        output.json(&all)?;
        Ok(if lenders.iter().any(|lender| lender.found.is_ok()) { Exit::Passed } else { Exit::Broken })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Data;

    #[test]
    fn the_example_is_a_pool() {
        let text = EXAMPLES.lines().skip_while(|line| !line.contains("[[lab.host]]")).take(5);
        let text: String = text.flat_map(|line| [line.trim(), "\n"]).collect();
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(Some(dir.path().to_owned())).unwrap();
        std::fs::write(data.settings(), text).unwrap();
        let pool = Pool::of(&data, &[]).unwrap();
        assert_eq!(pool.hosts()[0].validations.map(usize::from), Some(2));
    }
}
