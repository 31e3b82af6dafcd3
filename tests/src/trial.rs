//! The smallest validation there is: an order that installs one package made on the spot, and a scenario of one step.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    package::{self, File},
    program::Patchlab,
};

/// An order and a folder of scenarios.
#[derive(Debug)]
pub struct Trial {
    order: PathBuf,
    scenarios: PathBuf,
}

impl Trial {
    /// Writes, in `dir`, the order to install the package `name` with these files, and the scenario `alive` that runs `command`.
    ///
    /// # Panics
    /// The folder cannot be written, or the package not be built.
    pub fn new(name: &str, files: &[File<'_>], command: &str, dir: &Path) -> Self {
        let [order, scenarios] = ["order.toml", "scenarios"].map(|name| dir.join(name));
        let package = package::build(name, files, dir);
        let id = format!("PO-{}-1", name.to_uppercase());
        fs::write(&order, package::order(&id, name, &package)).expect("an order");
        fs::create_dir_all(scenarios.join("alive")).expect("a folder");
        // About the package, which is evidence, and about one that is there before: a scenario is run where what it is about is installed.
        let scenario = format!(
            "name = \"alive\"\nowner = \"tests\"\nsummary = \"it answers\"\napplies = {{ packages = [\"{name}\", \"dpkg\"] }}\n\n\
             [[step]]\nname = \"it answers\"\nrun = {command:?}\n"
        );
        fs::write(scenarios.join("alive/scenario.toml"), scenario).expect("a scenario");
        Self { order, scenarios }
    }

    /// `lab validate` with it, on the first of the stored baselines.
    ///
    /// # Panics
    /// There is no baseline.
    pub fn arguments(&self, patchlab: &Patchlab) -> Vec<String> {
        let baseline = patchlab.baseline();
        let [order, scenarios] = [&self.order, &self.scenarios].map(|path| path.display().to_string());
        ["lab", "validate", "--order", &order, "--baseline", &baseline, "--scenarios", &scenarios]
            .map(str::to_owned)
            .into()
    }
}
